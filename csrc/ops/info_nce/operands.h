// Checks and unpacks the arguments of info_nce, and binds it to the kernels of either device.
// Shapes and formula: info_nce.h. The CPU alone checks the entries of target
// and count.
#pragma once
#include <tuple>

#include "common/check_index.h"
#include "common/torch.h"

namespace mmssl {

struct InfoNceOptions {
  bool intra_view, symmetric;
  double eps;
  bool tf32;  // how a GPU may compute products of float32; nothing on the CPU depends on it
  bool in_batch;
};

struct InfoNceOperands {
  InfoNceOperands(const Tensor& anchor_, const Tensor& positive_, const Tensor& temperature_,
                  const OptTensor& negatives_, const OptTensor& target_, const OptTensor& count_,
                  const InfoNceOptions& options_)
      : anchor(as_contiguous(anchor_)),
        positive(as_contiguous(positive_)),
        temperature(temperature_),
        negatives(as_contiguous(negatives_)),
        target(as_contiguous(target_)),
        count(as_contiguous(count_)),
        options(options_),
        type(anchor.scalar_type()),
        accumulation(accumulation_type(type)),
        directions(options.symmetric ? 2 : 1) {
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
                        !(target.has_value() && options.symmetric),
                    "mmssl::info_nce: target must be (B, N) int64, and none if symmetric");
    STD_TORCH_CHECK(matches(count, anchor, ScalarType::Long, {pairs}) &&
                        !(count.has_value() && (target.has_value() || negatives.has_value())),
                    "mmssl::info_nce: num_rows must be (B,) int64, and none with target or negatives");
  }

  // Where the kernel follows them.
  void check_values() const {
    if (target.has_value()) cpu::check_ids("target", data<int64_t>(target), pairs * n, m, -1);
    if (count.has_value()) {
      cpu::check_ids("num_rows", data<int64_t>(count), pairs, n + 1, 0, "numbers");
    }
  }

  // The results of the forward: loss (B, N), saved (directions + 1, B, N) float64.
  Tensor new_loss() const { return new_empty(anchor, {pairs, n}, accumulation); }
  Tensor new_saved() const {
    return new_empty(anchor, {directions + 1, pairs, n}, ScalarType::Double);
  }

  Tensor anchor, positive, temperature;
  OptTensor negatives, target, count;
  InfoNceOptions options;
  ScalarType type, accumulation;
  int64_t pairs = 0, n = 0, m = 0, k = 0, d = 0, directions;
};

// The same for the backward, with its empty results.
struct InfoNceGradOperands : InfoNceOperands {
  InfoNceGradOperands(const Tensor& grad_, const Tensor& anchor_, const Tensor& positive_,
                      const Tensor& temperature_, const OptTensor& negatives_,
                      const Tensor& saved_, const OptTensor& target_, const OptTensor& count_,
                      const InfoNceOptions& options_)
      : InfoNceOperands(anchor_, positive_, temperature_, negatives_, target_, count_, options_),
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

template <class Kernels>
std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool tf32,
                                    const OptTensor& target, bool in_batch,
                                    const OptTensor& count) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, target, count,
                          {intra_view, symmetric, eps, tf32, in_batch});
  const Kernels kernels(o);
  const Tensor loss = o.new_loss(), saved = o.new_saved();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    kernels.forward(data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
                    mutable_data<decltype(sum)>(loss), mutable_data<double>(saved));
  });
  return {loss, saved};
}

// The gradients are in the order of the inputs.
template <class Kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved, bool intra_view, bool symmetric, double eps,
    bool tf32, const OptTensor& target, bool in_batch, const OptTensor& count) {
  const InfoNceGradOperands o(grad, anchor, positive, temperature, negatives, saved, target, count,
                              {intra_view, symmetric, eps, tf32, in_batch});
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.backward(data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
                     data<double>(o.saved), data<A>(o.grad), mutable_data<T>(o.grad_anchor),
                     mutable_data<T>(o.grad_positive), mutable_data<T>(o.grad_negatives),
                     mutable_data<A>(o.grad_temperature));
  });
  return {o.grad_anchor, o.grad_positive, o.grad_temperature, o.grad_negatives};
}

}  // namespace mmssl
