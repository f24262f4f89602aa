// Schemas of add_normalized and its binding to the CPU kernel.
#include <tuple>

#include "ops/add_normalized/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor> add_normalized(const Tensor& base_, const Tensor& x, double weight) {
  const NormalizedOperands o(x);
  const Tensor base = o.like_a_view(base_, "base");
  Tensor out = empty_like(base);
  Tensor inverse = new_empty(o.x, {o.x.size(0), o.x.size(1)}, o.accumulation);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::add_normalized<T, A>(o.size(), data<T>(base), data<T>(o.x), A(weight),
                              mutable_data<T>(out), mutable_data<A>(inverse), torch_threads());
  });
  return {out, inverse};
}

Tensor add_normalized_backward(const Tensor& grad_, const Tensor& x, const Tensor& inverse_,
                               double weight) {
  NormalizedOperands o(x);
  const Tensor grad = o.like_a_view(grad_, "grad"), inverse = o.checked_inverse(inverse_);
  Tensor grad_x = o.new_grad_x();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::add_normalized_backward<T, A>(o.size(), data<T>(grad), data<T>(o.x), data<A>(inverse),
                                       A(weight), mutable_data<T>(grad_x), torch_threads());
  });
  return grad_x;
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
