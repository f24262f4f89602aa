// Schemas of info_nce and its binding to the CPU kernel.
#include <tuple>

#include "ops/info_nce/info_nce.h"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

cpu::InfoNceArgs args_of(const InfoNceOperands& o, bool intra_view, double eps) {
  const double temperature = o.accumulation == ScalarType::Double
                                 ? *data<double>(o.temperature)
                                 : double(*data<float>(o.temperature));
  return {o.pairs, o.n, o.k, o.d, intra_view, o.directions == 2, temperature, eps};
}

// tf32 says how a GPU may compute products of float32; nothing here depends on it.
std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, symmetric);
  Tensor loss = o.new_loss(), saved = o.new_saved();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::info_nce_forward<T, A>(args_of(o, intra_view, eps), data<T>(o.anchor),
                                data<T>(o.positive), data<T>(o.negatives), mutable_data<A>(loss),
                                mutable_data<double>(saved), torch_threads());
  });
  return {loss, saved};
}

// The gradients are in the order of the inputs.
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved, bool intra_view, bool symmetric, double eps,
    bool) {
  const InfoNceGradOperands o(grad, anchor, positive, temperature, negatives, saved, symmetric);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::info_nce_backward<T, A>(
        args_of(o, intra_view, eps), data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
        data<double>(o.saved), data<A>(o.grad), mutable_data<T>(o.grad_anchor),
        mutable_data<T>(o.grad_positive), mutable_data<T>(o.grad_negatives),
        mutable_data<A>(o.grad_temperature), torch_threads());
  });
  return {o.grad_anchor, o.grad_positive, o.grad_temperature, o.grad_negatives};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "info_nce(Tensor anchor, Tensor positive, Tensor temperature, Tensor? negatives, "
      "bool intra_view, bool symmetric, float eps, bool tf32) -> (Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor temperature, "
      "Tensor? negatives, Tensor saved, bool intra_view, bool symmetric, float eps, bool tf32) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
}
