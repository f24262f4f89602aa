// Binds propagate_layers and its gradient to the CUDA kernels of propagate.
#include "common/cuda_binding.h"
#include "ops/propagate_layers/kernels.cuh"
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const LayersOperands& o)
      : device_(o.user),
        scratch_(new_empty(o.user, {cuda::hop_scratch(o.layers<float>())},
                           accumulation_type(o.user.scalar_type()))) {}

  // The scratch is that of the hop before, which has ended: they follow each other on the stream.
  template <class T, class A>
  void operator()(std::span<const SparseProduct<T, A>> products) const {
    MMSSL_CUDA_CHECK(cuda::launch_spmm(products, mutable_data<A>(scratch_), device_.stream));
  }

  template <class T, class A>
  void scaled(const T* x, T* y, int64_t n, A factor) const {
    MMSSL_CUDA_CHECK(cuda::launch_scaled(x, y, n, factor, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
  Tensor scratch_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers<Kernels>));
  m.impl("propagate_layers_backward", TORCH_BOX(&propagate_layers_backward<Kernels>));
}
