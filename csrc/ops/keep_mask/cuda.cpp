// Binds keep_mask to its CUDA kernel.
#include <vector>

#include "common/cuda_binding.h"
#include "ops/keep_mask/kernels.cuh"
#include "ops/keep_mask/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const KeepMaskOperands& o) : device_(o.seed) {}

  void fill(const int64_t* seed, int64_t count, int16_t limit, uint8_t* keep, int64_t n) const {
    const cuda::KeepMasks a{count, 1, seed, {n}, {limit}, {keep}};
    MMSSL_CUDA_CHECK(cuda::launch_keep_masks(a, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
};

std::vector<Tensor> keep_masks(const Tensor& seed_, std::vector<int64_t> n,
                               std::vector<int64_t> limit) {
  const Tensor seed = as_contiguous(seed_);
  const int64_t layers = int64_t(n.size());
  STD_TORCH_CHECK(layers >= 1 && layers <= cuda::KeepMasks::kMost && limit.size() == n.size() &&
                      matches(seed, seed, ScalarType::Long, {kAny, layers}),
                  "mmssl::keep_masks: seed must be (K, L) int64 for L sizes and limits, 4 at most");
  const cuda::CurrentDevice device(seed);
  cuda::KeepMasks a{seed.size(0), int(layers), data<int64_t>(seed), {}, {}, {}};
  std::vector<Tensor> out;
  for (int64_t l = 0; l < layers; ++l) {
    STD_TORCH_CHECK(n[l] >= 0 && int16_t(limit[l]) == limit[l],
                    "mmssl::keep_masks: sizes must be at least 0 and limits int16");
    out.push_back(new_empty(seed, {a.count * n[l]}, ScalarType::Byte));
    a.n[l] = n[l], a.limit[l] = int16_t(limit[l]), a.keep[l] = mutable_data<uint8_t>(out[l]);
  }
  MMSSL_CUDA_CHECK(cuda::launch_keep_masks(a, device.stream));
  return out;
}

Tensor drop_columns(const Tensor& x_, const std::vector<Tensor>& bias, const Tensor& seed_,
                    int64_t limit, double scale) {
  const Tensor x = as_contiguous(x_), seed = as_contiguous(seed_);
  const ScalarType type = x.scalar_type();
  const int64_t blocks = seed.numel();
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && x.dim() == 2 &&
                      matches(seed, x, ScalarType::Long, {kAny}) && blocks >= 1 &&
                      blocks <= cuda::DropColumns<float>::kMost && x.size(1) % blocks == 0 &&
                      (bias.empty() || int64_t(bias.size()) == blocks) && int16_t(limit) == limit,
                  "mmssl::drop_columns: x must be (N, K D) float32 or float64 with K <= 8, seed (K,) "
                  "int64, and none or K biases, on one device");
  for (const Tensor& b : bias) {
    STD_TORCH_CHECK(matches(b, x, type, {x.size(1) / blocks}) && b.is_contiguous(),
                    "mmssl::drop_columns: biases must be (D,) of the dtype and on the device of x");
  }
  const cuda::CurrentDevice device(x);
  const Tensor out = empty_like(x);
  for_dtype(type, [&](auto, auto sum) {
    using A = decltype(sum);
    cuda::DropColumns<A> a{x.size(0),           blocks,         x.size(1) / blocks, data<A>(x), {},
                           data<int64_t>(seed), int16_t(limit), A(scale), mutable_data<A>(out)};
    for (size_t n = 0; n < bias.size(); ++n) a.bias[n] = data<A>(bias[n]);
    MMSSL_CUDA_CHECK(cuda::launch_drop_columns(a, device.stream));
  });
  return out;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("keep_mask", TORCH_BOX(&keep_mask<Kernels>));
  m.impl("keep_masks", TORCH_BOX(&keep_masks));
  m.impl("drop_columns", TORCH_BOX(&drop_columns));
}
