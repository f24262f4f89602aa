// Checks and unpacks the tensors of info_nce for either backend: what would make a kernel read out of
// bounds. Shapes and formula: csrc/cpu/info_nce.h.
#pragma once
#include "common/stable_args.h"

namespace mmssl {

struct InfoNceOperands {
  InfoNceOperands(const Tensor& anchor_, const Tensor& positive_, const Tensor& temperature_,
                  const OptTensor& negatives_, bool symmetric)
      : anchor(as_contiguous(anchor_)),
        positive(as_contiguous(positive_)),
        temperature(temperature_),
        directions(symmetric ? 2 : 1) {
    const ScalarType type = anchor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "mmssl::info_nce: anchor must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(anchor.dim() == 3 && positive.dim() == 3 && positive.scalar_type() == type &&
                        anchor.size(0) == positive.size(0) && anchor.size(1) == positive.size(1) &&
                        anchor.size(2) == positive.size(2) && on_device_of(anchor, positive),
                    "mmssl::info_nce: anchor and positive must be (B, N, D) of one dtype");
    accumulation = accumulation_type(type);
    STD_TORCH_CHECK(temperature.numel() == 1 && temperature.scalar_type() == accumulation &&
                        on_device_of(anchor, temperature),
                    "mmssl::info_nce: temperature must be one element of the type sums are kept in");
    pairs = anchor.size(0), n = anchor.size(1), d = anchor.size(2);
    if (!negatives_.has_value()) return;
    negatives = as_contiguous(*negatives_);
    STD_TORCH_CHECK(negatives->dim() == 2 && negatives->size(1) == d &&
                        negatives->scalar_type() == type && on_device_of(anchor, *negatives),
                    "mmssl::info_nce: negatives must be (K, D) of the dtype of anchor");
    k = negatives->size(0);
  }

  template <class T>
  const T* negatives_data() const {
    return negatives.has_value() ? data<T>(*negatives) : nullptr;
  }

  // The results of the forward: loss (B, N), saved (directions + 1, B, N) float64.
  Tensor new_loss() const { return torch::stable::new_empty(anchor, {pairs, n}, accumulation); }
  Tensor new_saved() const {
    return torch::stable::new_empty(anchor, {directions + 1, pairs, n}, ScalarType::Double);
  }

  void check_backward(const Tensor& grad, const Tensor& saved) const {
    STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == pairs && grad.size(1) == n &&
                        grad.scalar_type() == accumulation && on_device_of(anchor, grad),
                    "mmssl::info_nce_backward: grad must be (B, N) like the loss");
    STD_TORCH_CHECK(saved.dim() == 3 && saved.size(0) == directions + 1 && saved.size(1) == pairs &&
                        saved.size(2) == n && saved.scalar_type() == ScalarType::Double &&
                        on_device_of(anchor, saved),
                    "mmssl::info_nce_backward: saved must be what the forward returned");
  }

  Tensor anchor, positive, temperature;
  OptTensor negatives;
  ScalarType accumulation;
  int64_t pairs, n, k = 0, d, directions;
};

}  // namespace mmssl
