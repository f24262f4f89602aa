// Schemas of norm_act and its two gradients, bound to the CPU kernels.
#include <tuple>

#include "ops/norm_act/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor, Tensor> norm_act(const Tensor& x, const Tensor& weight,
                                            const Tensor& bias_, const OptTensor& keep,
                                            double keep_scale, double slope, double eps) {
  const NormActOperands o(x, weight, keep);
  const Tensor bias = o.vector(bias_, "bias");
  Tensor y = o.new_matrix(), mean = o.new_vector(), rstd = o.new_vector();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::norm_act<T, A>(o.args<A>(keep_scale, slope), data<T>(o.x), data<A>(bias), A(eps),
                        mutable_data<T>(y), mutable_data<A>(mean), mutable_data<A>(rstd),
                        torch_threads());
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_backward(const Tensor& grad_y, const Tensor& x,
                                                     const Tensor& weight, const Tensor& mean,
                                                     const Tensor& rstd, const OptTensor& keep,
                                                     double keep_scale, double slope) {
  const NormActGradOperands o(grad_y, x, weight, mean, rstd, keep);
  Tensor grad_x = o.new_matrix(), grad_weight = o.new_vector(), grad_bias = o.new_vector();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::norm_act_backward<T, A>(o.args<A>(keep_scale, slope), data<T>(o.grad_y), data<T>(o.x),
                                 data<A>(o.mean), data<A>(o.rstd), mutable_data<T>(grad_x),
                                 mutable_data<A>(grad_weight), mutable_data<A>(grad_bias),
                                 torch_threads());
  });
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_double_backward(
    const Tensor& up_x_, const Tensor& up_weight_, const Tensor& up_bias_, const Tensor& grad_y,
    const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& rstd,
    const OptTensor& keep, double keep_scale, double slope) {
  const NormActGradOperands o(grad_y, x, weight, mean, rstd, keep);
  const Tensor up_x = o.matrix(up_x_, "up_x"), up_weight = o.vector(up_weight_, "up_weight");
  const Tensor up_bias = o.vector(up_bias_, "up_bias");
  Tensor out_grad_y = o.new_matrix(), out_x = o.new_matrix(), out_weight = o.new_vector();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::norm_act_double_backward<T, A>(
        o.args<A>(keep_scale, slope), data<T>(up_x), data<A>(up_weight), data<A>(up_bias),
        data<T>(o.grad_y), data<T>(o.x), data<A>(o.mean), data<A>(o.rstd),
        mutable_data<T>(out_grad_y), mutable_data<T>(out_x), mutable_data<A>(out_weight),
        torch_threads());
  });
  return {out_grad_y, out_x, out_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "norm_act(Tensor x, Tensor weight, Tensor bias, Tensor? keep, float keep_scale, float slope, "
      "float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
      "Tensor? keep, float keep_scale, float slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_double_backward(Tensor up_x, Tensor up_weight, Tensor up_bias, Tensor grad_y, "
      "Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? keep, float keep_scale, "
      "float slope) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&norm_act));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward));
  m.impl("norm_act_double_backward", TORCH_BOX(&norm_act_double_backward));
}
