// Binds add_normalized to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/add_normalized/kernels.cuh"
#include "ops/add_normalized/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const NormalizedOperands& o) : device_(o.x) {}

  template <class T, class A>
  void forward(const NormalizedSize& size, const T* base, const T* x, A weight, T* out,
               A* inverse) const {
    MMSSL_CUDA_CHECK(
        cuda::launch_add_normalized(size, base, x, weight, out, inverse, device_.stream));
  }

  template <class T, class A>
  void backward(const NormalizedSize& size, const T* grad, const T* x, const A* inverse, A weight,
                T* grad_x) const {
    MMSSL_CUDA_CHECK(cuda::launch_add_normalized_backward(size, grad, x, inverse, weight, grad_x,
                                                          device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("add_normalized", TORCH_BOX(&add_normalized<Kernels>));
  m.impl("add_normalized_backward", TORCH_BOX(&add_normalized_backward<Kernels>));
}
