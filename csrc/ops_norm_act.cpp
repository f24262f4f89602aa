// Schemas of norm_act and keep_mask and their binding to the CPU kernels. Formulas and shapes:
// csrc/cpu/norm_act.h and csrc/cpu/keep_mask.h.
#include <tuple>

#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/keep_mask.h"
#include "cpu/norm_act.h"

namespace {

using mmssl::data;
using mmssl::mutable_data;
using mmssl::OptTensor;
using mmssl::ScalarType;
using mmssl::Tensor;

Tensor checked(const Tensor& t, ScalarType type, int64_t rows, int64_t columns, const char* what) {
  const bool vector = rows < 0;
  STD_TORCH_CHECK(t.scalar_type() == type && t.dim() == (vector ? 1 : 2) &&
                      t.size(t.dim() - 1) == columns && (vector || t.size(0) == rows),
                  "mmssl::norm_act: ", what, " has a wrong shape or dtype");
  return mmssl::as_contiguous(t);
}

// The operands that all three passes share, contiguous and kept alive.
struct Operands {
  Operands(const Tensor& x_, const Tensor& weight_, const OptTensor& keep_)
      : type(x_.scalar_type()), sums(mmssl::accumulation_type(type)) {
    STD_TORCH_CHECK(x_.dim() == 2 && (type == ScalarType::Float || type == ScalarType::Double ||
                                      type == ScalarType::BFloat16),
                    "mmssl::norm_act: x must be (N, H) float32, float64 or bfloat16");
    x = mmssl::as_contiguous(x_);
    weight = vector(weight_, "weight");
    if (keep_.has_value()) {
      keep = checked(*keep_, ScalarType::Byte, x.size(0), x.size(1), "keep");
    }
  }

  Tensor vector(const Tensor& t, const char* what) const {
    return checked(t, sums, -1, x.size(1), what);
  }
  Tensor matrix(const Tensor& t, const char* what) const {
    return checked(t, type, x.size(0), x.size(1), what);
  }
  Tensor new_matrix() const { return torch::stable::empty_like(x); }
  Tensor new_vector() const { return torch::stable::new_empty(x, {x.size(1)}, sums); }

  template <class A>
  mmssl::cpu::NormActArgs<A> args(double keep_scale, double slope) const {
    return {x.size(0), x.size(1), data<A>(weight), keep ? data<uint8_t>(*keep) : nullptr,
            A(keep_scale), A(slope)};
  }

  ScalarType type, sums;
  Tensor x, weight;
  OptTensor keep;
};

std::tuple<Tensor, Tensor, Tensor> norm_act(const Tensor& x, const Tensor& weight,
                                            const Tensor& bias_, const OptTensor& keep,
                                            double keep_scale, double slope, double eps) {
  const Operands o(x, weight, keep);
  const Tensor bias = o.vector(bias_, "bias");
  Tensor y = o.new_matrix(), mean = o.new_vector(), rstd = o.new_vector();
  mmssl::for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::norm_act<T, A>(o.args<A>(keep_scale, slope), data<T>(o.x), data<A>(bias), A(eps),
                               mutable_data<T>(y), mutable_data<A>(mean), mutable_data<A>(rstd),
                               mmssl::torch_threads());
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_backward(const Tensor& grad_y_, const Tensor& x,
                                                     const Tensor& weight, const Tensor& mean_,
                                                     const Tensor& rstd_, const OptTensor& keep,
                                                     double keep_scale, double slope) {
  const Operands o(x, weight, keep);
  const Tensor grad_y = o.matrix(grad_y_, "grad_y");
  const Tensor mean = o.vector(mean_, "mean"), rstd = o.vector(rstd_, "rstd");
  Tensor grad_x = o.new_matrix(), grad_weight = o.new_vector(), grad_bias = o.new_vector();
  mmssl::for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::norm_act_backward<T, A>(
        o.args<A>(keep_scale, slope), data<T>(grad_y), data<T>(o.x), data<A>(mean), data<A>(rstd),
        mutable_data<T>(grad_x), mutable_data<A>(grad_weight), mutable_data<A>(grad_bias),
        mmssl::torch_threads());
  });
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_double_backward(
    const Tensor& up_x_, const Tensor& up_weight_, const Tensor& up_bias_, const Tensor& grad_y_,
    const Tensor& x, const Tensor& weight, const Tensor& mean_, const Tensor& rstd_,
    const OptTensor& keep, double keep_scale, double slope) {
  const Operands o(x, weight, keep);
  const Tensor up_x = o.matrix(up_x_, "up_x"), grad_y = o.matrix(grad_y_, "grad_y");
  const Tensor up_weight = o.vector(up_weight_, "up_weight");
  const Tensor up_bias = o.vector(up_bias_, "up_bias");
  const Tensor mean = o.vector(mean_, "mean"), rstd = o.vector(rstd_, "rstd");
  Tensor out_grad_y = o.new_matrix(), out_x = o.new_matrix(), out_weight = o.new_vector();
  mmssl::for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::norm_act_double_backward<T, A>(
        o.args<A>(keep_scale, slope), data<T>(up_x), data<A>(up_weight), data<A>(up_bias),
        data<T>(grad_y), data<T>(o.x), data<A>(mean), data<A>(rstd), mutable_data<T>(out_grad_y),
        mutable_data<T>(out_x), mutable_data<A>(out_weight), mmssl::torch_threads());
  });
  return {out_grad_y, out_x, out_weight};
}

Tensor keep_mask(const Tensor& seed_, int64_t n, int64_t limit) {
  STD_TORCH_CHECK(seed_.numel() == 1 && seed_.scalar_type() == ScalarType::Long,
                  "mmssl::keep_mask: seed must be one int64");
  STD_TORCH_CHECK(n >= 0 && limit >= INT16_MIN && limit <= INT16_MAX,
                  "mmssl::keep_mask: n must be at least 0 and limit an int16");
  const Tensor seed = mmssl::as_contiguous(seed_);
  Tensor keep = torch::stable::new_empty(seed, {n}, ScalarType::Byte);
  mmssl::cpu::keep_mask(static_cast<uint64_t>(*data<int64_t>(seed)), static_cast<int16_t>(limit),
                        mutable_data<uint8_t>(keep), n, mmssl::torch_threads());
  return keep;
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
  m.def("keep_mask(Tensor seed, SymInt n, int limit) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&norm_act));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward));
  m.impl("norm_act_double_backward", TORCH_BOX(&norm_act_double_backward));
  m.impl("keep_mask", TORCH_BOX(&keep_mask));
}
