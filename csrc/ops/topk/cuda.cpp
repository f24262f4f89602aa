// Binds masked_topk to its CUDA kernel.
#include "common/cuda_binding.h"
#include "ops/topk/kernels.cuh"
#include "ops/topk/operands.h"

namespace {

using namespace mmssl;

class Kernel {
 public:
  explicit Kernel(const TopkOperands& o) : user_emb_(o.user_emb), device_(o.user_emb) {
    STD_TORCH_CHECK(o.k <= cuda::kMaxTopk, "mmssl::masked_topk: on a GPU k must be at most ",
                    cuda::kMaxTopk, ", got ", o.k);
  }

  template <class T, class A>
  void operator()(const TopkArgs<T, A>& args) const {
    const Tensor scratch =
        cuda::new_scratch(user_emb_, cuda::topk_scratch(args, device_.processors()));
    MMSSL_CUDA_CHECK(cuda::launch_masked_topk(args, scratch.mutable_data_ptr(),
                                              device_.processors(), device_.stream));
  }

 private:
  Tensor user_emb_;
  cuda::CurrentDevice device_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) { m.impl("masked_topk", TORCH_BOX(&masked_topk<Kernel>)); }
