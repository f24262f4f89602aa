// Binds norm_act and its two gradients to the CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/norm_act/kernels.cuh"
#include "ops/norm_act/operands.h"

namespace {

using namespace mmssl;

struct Kernels : cuda::Launch {
  explicit Kernels(const NormActOperands& o)
      : Launch(o.x, cuda::norm_act_scratch(o.x.size(0) / o.groups, o.x.size(1), o.groups) * sizeof(double)) {}

  template <class T, class A>
  void forward(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean,
               A* rstd) const {
    MMSSL_CUDA_CHECK(
        cuda::launch_norm_act(a, x, bias, eps, y, mean, rstd, scratch<double>(), device.stream));
  }

  template <class T, class A>
  void backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean, const A* rstd,
                T* grad_x, A* grad_weight, A* grad_bias) const {
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_backward(a, grad_y, x, mean, rstd, grad_x, grad_weight,
                                                    grad_bias, scratch<double>(), device.stream));
  }

  template <class T, class A>
  void double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                       const A* up_bias, const T* grad_y, const T* x, const A* mean, const A* rstd,
                       T* out_grad_y, T* out_x, A* out_weight) const {
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_double_backward(a, up_x, up_weight, up_bias, grad_y, x,
                                                           mean, rstd, out_grad_y, out_x,
                                                           out_weight, scratch<double>(), device.stream));
  }
};

void norm_act_running(const Tensor& mean_, const Tensor& rstd_, const Tensor& running_mean,
                      const Tensor& running_var, double momentum, double eps, int64_t rows,
                      int64_t groups) {
  const Tensor mean = as_contiguous(mean_), rstd = as_contiguous(rstd_);
  const ScalarType type = mean.scalar_type();
  const int64_t columns = running_mean.dim() == 1 ? running_mean.size(0) : 0;
  const auto check = [&](const Tensor& t, int64_t length) {
    STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) &&
                        matches(t, mean, type, {length}) && t.is_contiguous(),
                    "mmssl::norm_act_running: expected (G H,) statistics and (H,) running ones, "
                    "float32 or float64, contiguous, on one device");
  };
  check(mean, groups * columns), check(rstd, groups * columns);
  check(running_mean, columns), check(running_var, columns);
  const cuda::CurrentDevice device(mean);
  for_dtype(type, [&](auto, auto sum) {
    using A = decltype(sum);
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_running<A>(
        {columns, rows, groups, momentum, eps, data<A>(mean), data<A>(rstd),
         mutable_data<A>(running_mean), mutable_data<A>(running_var)},
        device.stream));
  });
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("norm_act", TORCH_BOX(&norm_act<Kernels>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<Kernels>));
  m.impl("norm_act_double_backward", TORCH_BOX(&norm_act_double_backward<Kernels>));
  m.impl("norm_act_running", TORCH_BOX(&norm_act_running));
}
