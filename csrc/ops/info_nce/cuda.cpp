// Binds info_nce to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/info_nce/kernels.cuh"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const InfoNceOperands& o)
      : anchor_(o.anchor), temperature_(o.temperature), device_(o.anchor), shape_(shape_of(o)) {}

  template <class T, class A>
  void forward(const T* anchor, const T* positive, const T* negatives, A* loss,
               double* saved) const {
    const Tensor scratch = new_scratch<T, A>(false);
    MMSSL_CUDA_CHECK((cuda::launch_info_nce<T, A>(shape_, anchor, positive, negatives,
                                                  data<A>(temperature_), loss, saved,
                                                  scratch.mutable_data_ptr(), device_.stream)));
  }

  template <class T, class A>
  void backward(const T* anchor, const T* positive, const T* negatives, const double* saved,
                const A* grad, T* grad_anchor, T* grad_positive, T* grad_negatives,
                A* grad_temperature) const {
    const Tensor scratch = new_scratch<T, A>(true);
    MMSSL_CUDA_CHECK((cuda::launch_info_nce_backward<T, A>(
        shape_, anchor, positive, negatives, data<A>(temperature_), saved, grad, grad_anchor,
        grad_positive, grad_negatives, grad_temperature, scratch.mutable_data_ptr(),
        device_.stream)));
  }

 private:
  cuda::InfoNceShape shape_of(const InfoNceOperands& o) const {
    STD_TORCH_CHECK(o.options.in_batch && !o.target.has_value(),
                    "mmssl::info_nce: target and in_batch=False have no CUDA kernel");
    return {o.pairs,
            o.n,
            o.k,
            o.d,
            o.options.intra_view,
            o.options.symmetric,
            o.options.eps,
            o.options.tf32 ? cuda::Precision::kTf32 : cuda::Precision::kFull,
            device_.processors()};
  }
  template <class T, class A>
  Tensor new_scratch(bool backward) const {
    return cuda::new_scratch(anchor_, cuda::info_nce_scratch<T, A>(shape_, backward));
  }

  Tensor anchor_, temperature_;
  cuda::CurrentDevice device_;
  cuda::InfoNceShape shape_;  // uses the device
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("info_nce", TORCH_BOX(&info_nce<Kernels>));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward<Kernels>));
}
