// Checks and unpacks the tensors of norm_act and of its two gradients. Shapes and formula:
// norm_act.h.
#pragma once
#include "common/torch.h"
#include "ops/norm_act/norm_act.h"

namespace mmssl {

// The operands of all three passes; matrix() and vector() check those of one pass.
struct NormActOperands {
  NormActOperands(const Tensor& x_, const Tensor& weight_, const OptTensor& keep_)
      : x(as_contiguous(x_)),
        keep(as_contiguous(keep_)),
        type(x.scalar_type()),
        accumulation(accumulation_type(type)) {
    STD_TORCH_CHECK(x.dim() == 2 && is_supported(type),
                    "mmssl::norm_act: x must be (N, H) float32, float64 or bfloat16");
    STD_TORCH_CHECK(matches(keep, x, ScalarType::Byte, {x.size(0), x.size(1)}),
                    "mmssl::norm_act: keep must be (N, H) uint8 on the device of x");
    weight = vector(weight_, "weight");
  }

  Tensor vector(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, accumulation, {x.size(1)}), "mmssl::norm_act: ", what,
                    " must be (H,) of the type sums are kept in, on the device of x");
    return as_contiguous(t);
  }
  Tensor matrix(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, type, {x.size(0), x.size(1)}), "mmssl::norm_act: ", what,
                    " must be (N, H) of the dtype and on the device of x");
    return as_contiguous(t);
  }
  Tensor new_matrix() const { return empty_like(x); }
  Tensor new_vector() const { return new_empty(x, {x.size(1)}, accumulation); }

  template <class A>
  cpu::NormActArgs<A> args(double keep_scale, double slope) const {
    return {x.size(0),     x.size(1), data<A>(weight), data<uint8_t>(keep), A(keep_scale), A(slope)};
  }

  Tensor x, weight;
  OptTensor keep;
  ScalarType type, accumulation;
};

// The operands that both gradients share.
struct NormActGradOperands : NormActOperands {
  NormActGradOperands(const Tensor& grad_y_, const Tensor& x_, const Tensor& weight_,
                      const Tensor& mean_, const Tensor& rstd_, const OptTensor& keep_)
      : NormActOperands(x_, weight_, keep_),
        grad_y(matrix(grad_y_, "grad_y")),
        mean(vector(mean_, "mean")),
        rstd(vector(rstd_, "rstd")) {}

  Tensor grad_y, mean, rstd;
};

}  // namespace mmssl
