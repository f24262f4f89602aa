// Schemas of norm_act and its two gradients, bound to the CPU kernels.
#include "ops/norm_act/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const NormActOperands&) {}

  template <class T, class A>
  void forward(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean,
               A* rstd) const {
    cpu::norm_act<T, A>(a, x, bias, eps, y, mean, rstd, torch_threads());
  }

  template <class T, class A>
  void backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean, const A* rstd,
                T* grad_x, A* grad_weight, A* grad_bias) const {
    cpu::norm_act_backward<T, A>(a, grad_y, x, mean, rstd, grad_x, grad_weight, grad_bias,
                                 torch_threads());
  }

  template <class T, class A>
  void double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                       const A* up_bias, const T* grad_y, const T* x, const A* mean, const A* rstd,
                       T* out_grad_y, T* out_x, A* out_weight) const {
    cpu::norm_act_double_backward<T, A>(a, up_x, up_weight, up_bias, grad_y, x, mean, rstd,
                                        out_grad_y, out_x, out_weight, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "norm_act(Tensor x, Tensor weight, Tensor bias, Tensor? keep, float keep_scale, float slope, "
      "float eps, int groups) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
      "Tensor? keep, float keep_scale, float slope, int groups) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_double_backward(Tensor up_x, Tensor? up_weight, Tensor? up_bias, Tensor grad_y, "
      "Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? keep, float keep_scale, "
      "float slope, int groups) -> (Tensor, Tensor, Tensor)");
  // For a GPU; on the CPU the same numbers come from operators of torch.
  m.def(
      "norm_act_moved(Tensor x, Tensor weight, Tensor bias, Tensor? keep, float keep_scale, "
      "float slope, float eps, int groups, Tensor(a!) running_mean, Tensor(b!) running_var, "
      "Tensor(c!)? count, float momentum) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_backward_added(Tensor grad_y, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
      "Tensor? keep, float keep_scale, float slope, int groups, Tensor? more_x, "
      "Tensor? more_weight) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&norm_act<Kernels>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<Kernels>));
  m.impl("norm_act_double_backward", TORCH_BOX(&norm_act_double_backward<Kernels>));
}
