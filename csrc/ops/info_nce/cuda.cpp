// Binds info_nce to its CUDA kernels.
#include <algorithm>

#include "common/cuda_binding.h"
#include "ops/info_nce/kernels.cuh"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const InfoNceOperands& o)
      : device_(o.anchor), shape_(shape_of(o)), anchor_(o.anchor), temperature_(o.temperature),
        target_(o.target), count_(o.count) {}

  template <class T, class A>
  void forward(const T* anchor, const T* positive, const T* negatives, A* loss,
               double* saved) const {
    const Tensor scratch = new_scratch<T, A>(false);
    MMSSL_CUDA_CHECK((cuda::launch_info_nce<T, A>(shape_, anchor, positive, negatives,
                                                  data<int64_t>(target_), data<int64_t>(count_),
                                                  data<A>(temperature_), loss, saved,
                                                  scratch.mutable_data_ptr(), device_.stream)));
  }

  template <class T, class A>
  void backward(const T* anchor, const T* positive, const T* negatives, const double* saved,
                const A* grad, T* grad_anchor, T* grad_positive, T* grad_negatives,
                A* grad_temperature) const {
    const Tensor scratch = new_scratch<T, A>(true);
    MMSSL_CUDA_CHECK((cuda::launch_info_nce_backward<T, A>(
        shape_, anchor, positive, negatives, data<int64_t>(target_), data<int64_t>(count_),
        data<A>(temperature_), saved, grad, grad_anchor, grad_positive, grad_negatives, grad_temperature,
        scratch.mutable_data_ptr(), device_.stream)));
  }

 private:
  cuda::InfoNceShape shape_of(const InfoNceOperands& o) const {
    STD_TORCH_CHECK(o.pairs * std::max({o.n, o.m, o.k}) < int64_t(1) << 30,
                    "mmssl::info_nce: on a GPU at most 2^30 - 1 rows");
    return {o.pairs,
            o.n,
            o.m,
            o.k,
            o.d,
            o.options.in_batch,
            o.options.intra_view,
            o.options.symmetric,
            o.options.eps,
            o.options.tf32 ? cuda::Precision::kTf32 : cuda::Precision::kFull,
            device_.processors(),
            device_.hopper()};
  }
  template <class T, class A>
  Tensor new_scratch(bool backward) const {
    return cuda::new_scratch(
        anchor_, cuda::info_nce_scratch<T, A>(shape_, target_.has_value(), backward));
  }

  cuda::CurrentDevice device_;
  cuda::InfoNceShape shape_;  // uses the device
  Tensor anchor_, temperature_;
  OptTensor target_, count_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("info_nce", TORCH_BOX(&info_nce<Kernels>));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward<Kernels>));
}
