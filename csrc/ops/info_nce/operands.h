// Checks and unpacks the tensors of info_nce for both devices. Shapes and formula: info_nce.h.
// The CPU alone reads target, and checks its entries.
#pragma once
#include "common/torch.h"

namespace mmssl {

struct InfoNceOperands {
  InfoNceOperands(const Tensor& anchor_, const Tensor& positive_, const Tensor& temperature_,
                  const OptTensor& negatives_, const OptTensor& target_, bool symmetric)
      : anchor(as_contiguous(anchor_)),
        positive(as_contiguous(positive_)),
        temperature(temperature_),
        negatives(as_contiguous(negatives_)),
        target(as_contiguous(target_)),
        type(anchor.scalar_type()),
        accumulation(accumulation_type(type)),
        directions(symmetric ? 2 : 1) {
    STD_TORCH_CHECK(is_supported(type),
                    "mmssl::info_nce: anchor must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(anchor.dim() == 3 &&
                        matches(positive, anchor, type,
                                {anchor.size(0), target.has_value() ? kAny : anchor.size(1),
                                 anchor.size(2)}),
                    "mmssl::info_nce: anchor and positive must be (B, N, D) of one dtype on one "
                    "device; with target, positive (B, M, D)");
    STD_TORCH_CHECK(temperature.numel() == 1 && temperature.scalar_type() == accumulation &&
                        on_device_of(anchor, temperature),
                    "mmssl::info_nce: temperature must be one element of the type sums are kept in");
    pairs = anchor.size(0), n = anchor.size(1), m = positive.size(1), d = anchor.size(2);
    STD_TORCH_CHECK(matches(negatives, anchor, type, {kAny, d}),
                    "mmssl::info_nce: negatives must be (K, D) of the dtype of anchor");
    k = negatives.has_value() ? negatives->size(0) : 0;
    STD_TORCH_CHECK(matches(target, anchor, ScalarType::Long, {pairs, n}) &&
                        !(target.has_value() && symmetric),
                    "mmssl::info_nce: target must be (B, N) int64, and none if symmetric");
  }

  // Where the kernel follows it.
  void check_target() const {
    const int64_t* to = data<int64_t>(target);
    for (int64_t row = 0; to != nullptr && row < pairs * n; ++row) {
      STD_TORCH_CHECK(to[row] >= -1 && to[row] < m, "mmssl::info_nce: target must lie in [-1, ", m,
                      "), got ", to[row]);
    }
  }

  // The results of the forward: loss (B, N), saved (directions + 1, B, N) float64.
  Tensor new_loss() const { return new_empty(anchor, {pairs, n}, accumulation); }
  Tensor new_saved() const {
    return new_empty(anchor, {directions + 1, pairs, n}, ScalarType::Double);
  }

  Tensor anchor, positive, temperature;
  OptTensor negatives, target;
  ScalarType type, accumulation;
  int64_t pairs = 0, n = 0, m = 0, k = 0, d = 0, directions;
};

// The same for the backward, with its empty results.
struct InfoNceGradOperands : InfoNceOperands {
  InfoNceGradOperands(const Tensor& grad_, const Tensor& anchor_, const Tensor& positive_,
                      const Tensor& temperature_, const OptTensor& negatives_,
                      const Tensor& saved_, const OptTensor& target_, bool symmetric)
      : InfoNceOperands(anchor_, positive_, temperature_, negatives_, target_, symmetric),
        grad(as_contiguous(grad_)),
        saved(as_contiguous(saved_)),
        grad_anchor(empty_like(anchor)),
        grad_positive(empty_like(positive)),
        grad_temperature(new_empty(anchor, {1}, accumulation)),
        grad_negatives(new_empty(anchor, {k, d})) {
    STD_TORCH_CHECK(matches(grad, anchor, accumulation, {pairs, n}),
                    "mmssl::info_nce_backward: grad must be (B, N) like the loss");
    STD_TORCH_CHECK(matches(saved, anchor, ScalarType::Double, {directions + 1, pairs, n}),
                    "mmssl::info_nce_backward: saved must be what the forward returned");
  }

  Tensor grad, saved;
  Tensor grad_anchor, grad_positive, grad_temperature, grad_negatives;
};

}  // namespace mmssl
