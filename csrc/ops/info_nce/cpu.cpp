// Schemas of info_nce and its binding to the CPU kernel.
#include <tuple>

#include "ops/info_nce/info_nce.h"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

cpu::InfoNceArgs args_of(const InfoNceOperands& o, bool in_batch, bool intra_view, double eps) {
  o.check_target();
  const double temperature = o.accumulation == ScalarType::Double
                                 ? *data<double>(o.temperature)
                                 : double(*data<float>(o.temperature));
  return {o.pairs,           o.n,         o.m, o.k, o.d, data<int64_t>(o.target), in_batch,
          intra_view,        o.directions == 2, temperature, eps};
}

// tf32 says how a GPU may compute products of float32; nothing here depends on it.
std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool,
                                    const OptTensor& target, bool in_batch) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, target, symmetric);
  const cpu::InfoNceArgs args = args_of(o, in_batch, intra_view, eps);
  Tensor loss = o.new_loss(), saved = o.new_saved();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::info_nce_forward<T, A>(args, data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
                                mutable_data<A>(loss), mutable_data<double>(saved),
                                torch_threads());
  });
  return {loss, saved};
}

// The gradients are in the order of the inputs.
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved, bool intra_view, bool symmetric, double eps,
    bool, const OptTensor& target, bool in_batch) {
  const InfoNceGradOperands o(grad, anchor, positive, temperature, negatives, saved, target,
                              symmetric);
  const cpu::InfoNceArgs args = args_of(o, in_batch, intra_view, eps);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::info_nce_backward<T, A>(
        args, data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives), data<double>(o.saved),
        data<A>(o.grad), mutable_data<T>(o.grad_anchor), mutable_data<T>(o.grad_positive),
        mutable_data<T>(o.grad_negatives), mutable_data<A>(o.grad_temperature), torch_threads());
  });
  return {o.grad_anchor, o.grad_positive, o.grad_temperature, o.grad_negatives};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "info_nce(Tensor anchor, Tensor positive, Tensor temperature, Tensor? negatives, "
      "bool intra_view, bool symmetric, float eps, bool tf32, Tensor? target=None, "
      "bool in_batch=True) -> (Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor temperature, "
      "Tensor? negatives, Tensor saved, bool intra_view, bool symmetric, float eps, bool tf32, "
      "Tensor? target=None, bool in_batch=True) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
}
