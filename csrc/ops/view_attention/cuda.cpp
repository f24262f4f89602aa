// Binds view_attention to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/view_attention/kernels.cuh"
#include "ops/view_attention/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const ViewAttentionOperands& o) : device_(o.view) {
    const int64_t bytes = o.type == ScalarType::Double ? 8 : 4;
    STD_TORCH_CHECK(cuda::view_attention_numbers(o.size) * bytes <= cuda::kViewAttentionBytes,
                    "mmssl::view_attention: on a GPU num_heads * M * (M + 2) must be at most ",
                    cuda::kViewAttentionBytes / bytes, " for this dtype");
    STD_TORCH_CHECK((o.size.heads + o.size.views) * o.size.dim < int64_t(1) << 31,
                    "mmssl::view_attention: a node has too many features for a GPU");
  }

  template <class T, class A>
  void forward(const ViewAttentionSize& size, const T* query, const T* key, const T* view,
               T* out) const {
    MMSSL_CUDA_CHECK((
        cuda::launch_view_attention<T, A>(size, query, key, view, out, device_.stream)));
  }

  template <class T, class A>
  void backward(const ViewAttentionSize& size, const T* grad, const T* query, const T* key,
                const T* view, T* grad_query, T* grad_key, T* grad_view) const {
    MMSSL_CUDA_CHECK((cuda::launch_view_attention_backward<T, A>(
        size, grad, query, key, view, grad_query, grad_key, grad_view, device_.stream)));
  }

 private:
  cuda::CurrentDevice device_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("view_attention", TORCH_BOX(&view_attention<Kernels>));
  m.impl("view_attention_backward", TORCH_BOX(&view_attention_backward<Kernels>));
}
