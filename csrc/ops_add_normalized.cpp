// Schemas of add_normalized and its binding to the CPU kernel: csrc/cpu/add_normalized.h.
#include <tuple>

#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/add_normalized.h"

namespace {

using mmssl::data;
using mmssl::mutable_data;
using mmssl::ScalarType;
using mmssl::Tensor;
namespace stable = torch::stable;

// Rows must be contiguous; how they lie among each other is up to the caller.
Tensor with_contiguous_rows(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(x.dim() == 3 && (type == ScalarType::Float || type == ScalarType::Double ||
                                   type == ScalarType::BFloat16),
                  "mmssl::add_normalized: x must be (M, N, D) float32, float64 or bfloat16");
  return x.size(2) == 1 || x.stride(2) == 1 ? x : mmssl::as_contiguous(x);
}

mmssl::cpu::NormalizedSize size_of(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

Tensor like_a_view(const Tensor& t, const Tensor& x, const char* what) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == x.size(1) && t.size(1) == x.size(2) &&
                      t.scalar_type() == x.scalar_type(),
                  "mmssl::add_normalized: ", what, " must be (N, D) of the dtype of x");
  return mmssl::as_contiguous(t);
}

std::tuple<Tensor, Tensor> add_normalized(const Tensor& base_, const Tensor& x_, double weight) {
  const Tensor x = with_contiguous_rows(x_), base = like_a_view(base_, x, "base");
  Tensor out = stable::empty_like(base);
  Tensor inverse = stable::new_empty(x, {x.size(0), x.size(1)},
                                     mmssl::accumulation_type(x.scalar_type()));
  mmssl::for_dtype(x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::add_normalized<T, A>(size_of(x), data<T>(base), data<T>(x), A(weight),
                                     mutable_data<T>(out), mutable_data<A>(inverse),
                                     mmssl::torch_threads());
  });
  return {out, inverse};
}

Tensor add_normalized_backward(const Tensor& grad_, const Tensor& x_, const Tensor& inverse_,
                               double weight) {
  const Tensor x = with_contiguous_rows(x_), grad = like_a_view(grad_, x, "grad");
  STD_TORCH_CHECK(inverse_.dim() == 2 && inverse_.size(0) == x.size(0) &&
                      inverse_.size(1) == x.size(1) &&
                      inverse_.scalar_type() == mmssl::accumulation_type(x.scalar_type()),
                  "mmssl::add_normalized: inverse must be (M, N) of the type sums are kept in");
  const Tensor inverse = mmssl::as_contiguous(inverse_);
  // In the order of x where x is dense, so that what x is a view of gets its gradient for nothing.
  Tensor out = stable::empty_like(x);
  STD_TORCH_CHECK(out.size(2) == 1 || out.stride(2) == 1, "mmssl::add_normalized: layout of x");
  const bool same = out.stride(0) == x.stride(0) && out.stride(1) == x.stride(1);
  const Tensor read = same ? x : mmssl::as_contiguous(x);
  if (!same) out = stable::empty_like(read);
  mmssl::for_dtype(x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::add_normalized_backward<T, A>(size_of(read), data<T>(grad), data<T>(read),
                                              data<A>(inverse), A(weight), mutable_data<T>(out),
                                              mmssl::torch_threads());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("add_normalized(Tensor base, Tensor x, float weight) -> (Tensor, Tensor)");
  m.def(
      "add_normalized_backward(Tensor grad, Tensor x, Tensor inverse, float weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("add_normalized", TORCH_BOX(&add_normalized));
  m.impl("add_normalized_backward", TORCH_BOX(&add_normalized_backward));
}
