// Checks and unpacks the tensors of add_normalized, and binds it to the kernels of either device.
// Shapes and formula: add_normalized.h.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/add_normalized/add_normalized.h"

namespace mmssl {

struct NormalizedOperands {
  explicit NormalizedOperands(const Tensor& x_)
      : x(x_), type(x.scalar_type()), accumulation(accumulation_type(type)) {
    STD_TORCH_CHECK(x.dim() == 3 && is_supported(type),
                    "mmssl::add_normalized: x must be (M, N, D) float32, float64 or bfloat16");
    // Rows must be contiguous; their order in memory is up to the caller.
    if (x.size(2) != 1 && x.stride(2) != 1) x = as_contiguous(x);
  }

  // base, or the gradient of the result.
  Tensor like_a_view(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, x, type, {x.size(1), x.size(2)}), "mmssl::add_normalized: ", what,
                    " must be (N, D) of the dtype and on the device of x");
    return as_contiguous(t);
  }
  Tensor checked_inverse(const Tensor& t) const {
    STD_TORCH_CHECK(matches(t, x, accumulation, {x.size(0), x.size(1)}),
                    "mmssl::add_normalized: inverse must be (M, N) of the type sums are kept in");
    return as_contiguous(t);
  }

  // In the order of x where x is dense, so that the gradient of whatever x is a view of costs no
  // copy. Elsewhere x is copied into that order.
  Tensor new_grad_x() {
    Tensor out = empty_like(x);
    STD_TORCH_CHECK(out.size(2) == 1 || out.stride(2) == 1,
                    "mmssl::add_normalized: the rows of x must be contiguous");
    if (out.stride(0) == x.stride(0) && out.stride(1) == x.stride(1)) return out;
    x = as_contiguous(x);
    return empty_like(x);
  }
  NormalizedSize size() const {
    return {x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
  }

  Tensor x;
  ScalarType type, accumulation;
};

template <class Kernels>
std::tuple<Tensor, Tensor> add_normalized(const Tensor& base_, const Tensor& x, double weight) {
  const NormalizedOperands o(x);
  const Tensor base = o.like_a_view(base_, "base");
  const Tensor out = empty_like(base);
  const Tensor inverse = new_empty(o.x, {o.x.size(0), o.x.size(1)}, o.accumulation);
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.forward(o.size(), data<T>(base), data<T>(o.x), A(weight), mutable_data<T>(out),
                    mutable_data<A>(inverse));
  });
  return {out, inverse};
}

template <class Kernels>
Tensor add_normalized_backward(const Tensor& grad_, const Tensor& x, const Tensor& inverse_,
                               double weight) {
  NormalizedOperands o(x);
  const Tensor grad = o.like_a_view(grad_, "grad"), inverse = o.checked_inverse(inverse_);
  const Tensor grad_x = o.new_grad_x();
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.backward(o.size(), data<T>(grad), data<T>(o.x), data<A>(inverse), A(weight),
                     mutable_data<T>(grad_x));
  });
  return grad_x;
}

}  // namespace mmssl
