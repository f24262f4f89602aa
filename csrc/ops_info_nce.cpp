// Schemas of info_nce and its binding to the CPU kernel. Shapes: csrc/cpu/info_nce.h.
#include <tuple>

#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/info_nce.h"

namespace {

using mmssl::OptTensor;
using mmssl::Tensor;
using torch::headeronly::ScalarType;

// The operands in contiguous form, checked for what would make a kernel read out of bounds.
struct Operands {
  Operands(const Tensor& anchor_, const Tensor& positive_, const Tensor& temperature,
           const OptTensor& negatives_, bool intra_view, bool symmetric, double eps)
      : anchor(torch::stable::contiguous(anchor_)), positive(torch::stable::contiguous(positive_)) {
    const ScalarType type = anchor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "mmssl::info_nce: anchor must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(anchor.dim() == 3 && positive.dim() == 3 && positive.scalar_type() == type &&
                        anchor.size(0) == positive.size(0) && anchor.size(1) == positive.size(1) &&
                        anchor.size(2) == positive.size(2),
                    "mmssl::info_nce: anchor and positive must be (B, N, D) of one dtype");
    accumulation = mmssl::accumulation_type(type);
    STD_TORCH_CHECK(temperature.numel() == 1 && temperature.scalar_type() == accumulation,
                    "mmssl::info_nce: temperature must be one element of the type sums are kept in");
    args.pairs = anchor.size(0);
    args.n = anchor.size(1);
    args.d = anchor.size(2);
    args.k = 0;
    if (negatives_.has_value()) {
      negatives = torch::stable::contiguous(*negatives_);
      STD_TORCH_CHECK(negatives->dim() == 2 && negatives->size(1) == args.d &&
                          negatives->scalar_type() == type,
                      "mmssl::info_nce: negatives must be (K, D) of the dtype of anchor");
      args.k = negatives->size(0);
    }
    args.intra_view = intra_view;
    args.symmetric = symmetric;
    args.eps = eps;
    args.temperature = accumulation == ScalarType::Double ? *mmssl::data<double>(temperature)
                                                          : *mmssl::data<float>(temperature);
  }

  template <class T>
  const T* negatives_data() const {
    return negatives.has_value() ? mmssl::data<T>(*negatives) : nullptr;
  }

  Tensor anchor, positive;
  OptTensor negatives;
  ScalarType accumulation;
  mmssl::cpu::InfoNceArgs args;
};

std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps) {
  const Operands o(anchor, positive, temperature, negatives, intra_view, symmetric, eps);
  const int64_t pairs = o.args.pairs, n = o.args.n;
  Tensor loss = torch::stable::new_empty(o.anchor, {pairs, n}, o.accumulation);
  Tensor saved = torch::stable::new_empty(o.anchor, {o.args.directions() + 1, pairs, n},
                                          ScalarType::Double);
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::info_nce_forward<T, A>(o.args, mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive),
                                       o.negatives_data<T>(), mmssl::mutable_data<A>(loss),
                                       mmssl::mutable_data<double>(saved), mmssl::torch_threads());
  });
  return {loss, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad_, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved_, bool intra_view, bool symmetric, double eps) {
  const Operands o(anchor, positive, temperature, negatives, intra_view, symmetric, eps);
  const int64_t pairs = o.args.pairs, n = o.args.n;
  const Tensor grad = torch::stable::contiguous(grad_), saved = torch::stable::contiguous(saved_);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == pairs && grad.size(1) == n &&
                      grad.scalar_type() == o.accumulation,
                  "mmssl::info_nce_backward: grad must be (B, N) like the loss");
  STD_TORCH_CHECK(saved.dim() == 3 && saved.size(0) == o.args.directions() + 1 &&
                      saved.size(1) == pairs && saved.size(2) == n &&
                      saved.scalar_type() == ScalarType::Double,
                  "mmssl::info_nce_backward: saved must be what the forward returned");
  Tensor grad_anchor = torch::stable::empty_like(o.anchor);
  Tensor grad_positive = torch::stable::empty_like(o.positive);
  Tensor grad_negatives = torch::stable::new_empty(o.anchor, {o.args.k, o.args.d});
  Tensor grad_temperature = torch::stable::new_empty(o.anchor, {1}, o.accumulation);
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::info_nce_backward<T, A>(
        o.args, mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive), o.negatives_data<T>(),
        mmssl::data<double>(saved), mmssl::data<A>(grad), mmssl::mutable_data<T>(grad_anchor),
        mmssl::mutable_data<T>(grad_positive), mmssl::mutable_data<T>(grad_negatives),
        mmssl::mutable_data<A>(grad_temperature), mmssl::torch_threads());
  });
  return {grad_anchor, grad_positive, grad_negatives, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "info_nce(Tensor anchor, Tensor positive, Tensor temperature, Tensor? negatives, "
      "bool intra_view, bool symmetric, float eps) -> (Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor temperature, "
      "Tensor? negatives, Tensor saved, bool intra_view, bool symmetric, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
}
