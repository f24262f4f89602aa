// Checks and unpacks the tensors of norm_act and of its two gradients, and binds them to the kernels
// of either device. Shapes and formula: norm_act.h.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/norm_act/norm_act.h"

namespace mmssl {

// The operands of all three passes; matrix() and vector() check those of one pass.
struct NormActOperands {
  NormActOperands(const Tensor& x_, const Tensor& weight_, const OptTensor& keep_, int64_t groups_)
      : x(as_contiguous(x_)),
        keep(as_contiguous(keep_)),
        groups(groups_),
        type(x.scalar_type()),
        accumulation(accumulation_type(type)) {
    STD_TORCH_CHECK(x.dim() == 2 && is_supported(type),
                    "mmssl::norm_act: x must be (N, H) float32, float64 or bfloat16");
    STD_TORCH_CHECK(groups >= 1 && x.size(0) % groups == 0,
                    "mmssl::norm_act: groups must divide the rows of x");
    STD_TORCH_CHECK(matches(keep, x, ScalarType::Byte, {x.size(0), x.size(1)}),
                    "mmssl::norm_act: keep must be (N, H) uint8 on the device of x");
    weight = vector(weight_, "weight");
  }

  Tensor vector(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, accumulation, {x.size(1)}), "mmssl::norm_act: ", what,
                    " must be (H,) of the type sums are kept in, on the device of x");
    return as_contiguous(t);
  }
  OptTensor vector(const OptTensor& t, const char* what) const {
    return t ? OptTensor(vector(*t, what)) : t;
  }
  Tensor matrix(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, type, {x.size(0), x.size(1)}), "mmssl::norm_act: ", what,
                    " must be (N, H) of the dtype and on the device of x");
    return as_contiguous(t);
  }
  Tensor new_matrix() const { return empty_like(x); }
  Tensor new_vector() const { return new_empty(x, {x.size(1)}, accumulation); }
  Tensor statistics(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, accumulation, {groups * x.size(1)}), "mmssl::norm_act: ", what,
                    " must be (G H,) of the type sums are kept in, on the device of x");
    return as_contiguous(t);
  }
  Tensor new_statistics() const { return new_empty(x, {groups * x.size(1)}, accumulation); }

  template <class A>
  NormActArgs<A> args(double keep_scale, double slope) const {
    return {x.size(0) / groups, x.size(1), data<A>(weight), data<uint8_t>(keep), A(keep_scale),
            A(slope),           groups};
  }

  Tensor x, weight;
  OptTensor keep;
  int64_t groups;
  ScalarType type, accumulation;
};

// The operands that both gradients share.
struct NormActGradOperands : NormActOperands {
  NormActGradOperands(const Tensor& grad_y_, const Tensor& x_, const Tensor& weight_,
                      const Tensor& mean_, const Tensor& rstd_, const OptTensor& keep_,
                      int64_t groups_)
      : NormActOperands(x_, weight_, keep_, groups_),
        grad_y(matrix(grad_y_, "grad_y")),
        mean(statistics(mean_, "mean")),
        rstd(statistics(rstd_, "rstd")) {}

  Tensor grad_y, mean, rstd;
};

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> forward(const NormActOperands& o, const Tensor& bias_,
                                           double keep_scale, double slope, double eps,
                                           const Kernels& kernels) {
  const Tensor bias = o.vector(bias_, "bias");
  const Tensor y = o.new_matrix(), mean = o.new_statistics(), rstd = o.new_statistics();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.forward(o.args<A>(keep_scale, slope), data<T>(o.x), data<A>(bias), A(eps),
                    mutable_data<T>(y), mutable_data<A>(mean), mutable_data<A>(rstd));
  });
  return {y, mean, rstd};
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> norm_act(const Tensor& x, const Tensor& weight,
                                            const Tensor& bias, const OptTensor& keep,
                                            double keep_scale, double slope, double eps,
                                            int64_t groups) {
  const NormActOperands o(x, weight, keep, groups);
  return forward(o, bias, keep_scale, slope, eps, Kernels(o));
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> backward(const NormActGradOperands& o, double keep_scale,
                                            double slope, const Kernels& kernels) {
  const Tensor grad_x = o.new_matrix(), grad_weight = o.new_vector(), grad_bias = o.new_vector();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.backward(o.args<A>(keep_scale, slope), data<T>(o.grad_y), data<T>(o.x),
                     data<A>(o.mean), data<A>(o.rstd), mutable_data<T>(grad_x),
                     mutable_data<A>(grad_weight), mutable_data<A>(grad_bias));
  });
  return {grad_x, grad_weight, grad_bias};
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> norm_act_backward(const Tensor& grad_y, const Tensor& x,
                                                     const Tensor& weight, const Tensor& mean,
                                                     const Tensor& rstd, const OptTensor& keep,
                                                     double keep_scale, double slope, int64_t groups) {
  const NormActGradOperands o(grad_y, x, weight, mean, rstd, keep, groups);
  return backward(o, keep_scale, slope, Kernels(o));
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> norm_act_double_backward(
    const Tensor& up_x_, const OptTensor& up_weight_, const OptTensor& up_bias_, const Tensor& grad_y,
    const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& rstd,
    const OptTensor& keep, double keep_scale, double slope, int64_t groups) {
  const NormActGradOperands o(grad_y, x, weight, mean, rstd, keep, groups);
  const Kernels kernels(o);
  const Tensor up_x = o.matrix(up_x_, "up_x"), out_x = o.new_matrix();
  const OptTensor up_weight = o.vector(up_weight_, "up_weight");
  const OptTensor up_bias = o.vector(up_bias_, "up_bias");
  const Tensor out_weight = o.new_vector(), out_grad_y = o.new_matrix();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.double_backward(o.args<A>(keep_scale, slope), data<T>(up_x), data<A>(up_weight),
                            data<A>(up_bias), data<T>(o.grad_y), data<T>(o.x), data<A>(o.mean),
                            data<A>(o.rstd), mutable_data<T>(out_grad_y), mutable_data<T>(out_x),
                            mutable_data<A>(out_weight));
  });
  return {out_grad_y, out_x, out_weight};
}

}  // namespace mmssl
