// Checks the operands of keep_mask, and binds it to the kernel of either device.
#pragma once
#include <cstdint>

#include "common/torch.h"

namespace mmssl {

struct KeepMaskOperands {
  KeepMaskOperands(const Tensor& seed_, int64_t n_, int64_t limit_)
      : seed(as_contiguous(seed_)), n(n_), limit(static_cast<int16_t>(limit_)) {
    STD_TORCH_CHECK(seed.dim() == 1 && seed.scalar_type() == ScalarType::Long,
                    "mmssl::keep_mask: seed must be (K,) int64");
    STD_TORCH_CHECK(n >= 0 && (n == 0 || count() <= INT64_MAX / n) && limit == limit_,
                    "mmssl::keep_mask: n must be at least 0 and limit an int16");
  }

  Tensor new_keep() const { return new_empty(seed, {count() * n}, ScalarType::Byte); }

  int64_t count() const { return seed.size(0); }

  Tensor seed;
  int64_t n;
  int16_t limit;
};

template <class Kernels>
Tensor keep_mask(const Tensor& seed, int64_t n, int64_t limit) {
  const KeepMaskOperands o(seed, n, limit);
  const Tensor keep = o.new_keep();
  Kernels(o).fill(data<int64_t>(o.seed), o.count(), o.limit, mutable_data<uint8_t>(keep), o.n);
  return keep;
}

}  // namespace mmssl
