// Checks the operands of keep_mask.
#pragma once
#include "common/torch.h"

namespace mmssl {

struct KeepMaskOperands {
  KeepMaskOperands(const Tensor& seed_, int64_t n_, int64_t limit_)
      : seed(as_contiguous(seed_)), n(n_), limit(static_cast<int16_t>(limit_)) {
    STD_TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long,
                    "mmssl::keep_mask: seed must be one int64");
    STD_TORCH_CHECK(n >= 0 && limit == limit_,
                    "mmssl::keep_mask: n must be at least 0 and limit an int16");
  }

  Tensor new_keep() const { return new_empty(seed, {n}, ScalarType::Byte); }

  Tensor seed;
  int64_t n;
  int16_t limit;
};

}  // namespace mmssl
