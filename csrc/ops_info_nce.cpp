// Schemas of info_nce and its binding to the CPU kernel. Shapes: csrc/cpu/info_nce.h.
#include <tuple>

#include "common/info_nce_args.h"
#include "common/torch_threads.h"
#include "cpu/info_nce.h"

namespace {

using mmssl::InfoNceOperands;
using mmssl::OptTensor;
using mmssl::Tensor;

mmssl::cpu::InfoNceArgs arguments(const InfoNceOperands& o, bool intra_view, double eps) {
  const double temperature =
      o.accumulation == mmssl::ScalarType::Double ? *mmssl::data<double>(o.temperature)
                                                  : double(*mmssl::data<float>(o.temperature));
  return {o.pairs, o.n, o.k, o.d, intra_view, o.directions == 2, temperature, eps};
}

// tf32 says how a GPU may form products of float32; nothing here depends on it.
std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, symmetric);
  Tensor loss = o.new_loss(), saved = o.new_saved();
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::info_nce_forward<T, A>(
        arguments(o, intra_view, eps), mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive),
        o.negatives_data<T>(), mmssl::mutable_data<A>(loss), mmssl::mutable_data<double>(saved),
        mmssl::torch_threads());
  });
  return {loss, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad_, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved_, bool intra_view, bool symmetric, double eps,
    bool) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, symmetric);
  const Tensor grad = mmssl::as_contiguous(grad_), saved = mmssl::as_contiguous(saved_);
  o.check_backward(grad, saved);
  Tensor grad_anchor = torch::stable::empty_like(o.anchor);
  Tensor grad_positive = torch::stable::empty_like(o.positive);
  Tensor grad_negatives = torch::stable::new_empty(o.anchor, {o.k, o.d});
  Tensor grad_temperature = torch::stable::new_empty(o.anchor, {1}, o.accumulation);
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::info_nce_backward<T, A>(
        arguments(o, intra_view, eps), mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive),
        o.negatives_data<T>(), mmssl::data<double>(saved), mmssl::data<A>(grad),
        mmssl::mutable_data<T>(grad_anchor), mmssl::mutable_data<T>(grad_positive),
        mmssl::mutable_data<T>(grad_negatives), mmssl::mutable_data<A>(grad_temperature),
        mmssl::torch_threads());
  });
  return {grad_anchor, grad_positive, grad_negatives, grad_temperature};
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
