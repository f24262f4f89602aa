// Checks and unpacks the tensors of sample_bpr. Shapes: sampling.h.
#pragma once
#include "common/torch.h"
#include "ops/sampling/sampling.h"

namespace mmssl {

// The kernel checks draws, users and rowptr as it reads them and returns the first bad triple.
struct SampleOperands {
  SampleOperands(const Tensor& draw_, const Tensor& candidates_, const Tensor& rowptr_,
                 const Tensor& col_)
      : draw(as_contiguous(draw_)),
        candidates(as_contiguous(candidates_)),
        rowptr(as_contiguous(rowptr_)),
        col(as_contiguous(col_)) {
    STD_TORCH_CHECK(matches(draw, candidates, ScalarType::Double, {3, kAny}),
                    "mmssl::sample_bpr: draw must be (3, B) float64");
    STD_TORCH_CHECK(matches(candidates, draw, ScalarType::Long, {kAny}) &&
                        candidates.size(0) >= draw.size(1),
                    "mmssl::sample_bpr: candidates must be (n,) int64 with n >= B");
    STD_TORCH_CHECK(matches(rowptr, draw, ScalarType::Long, {kAny}) && rowptr.size(0) >= 1 &&
                        matches(col, draw, ScalarType::Int, {kAny}),
                    "mmssl::sample_bpr: rowptr must be (U + 1,) int64 and col (E,) int32, on the "
                    "device of draw");
  }

  Tensor new_ids() const { return new_empty(candidates, {draw.size(1)}); }
  int64_t num_users() const { return rowptr.size(0) - 1; }

  cpu::SampleArgs args(int64_t num_items) const {
    return {data<double>(draw), data<int64_t>(candidates), data<int64_t>(rowptr),
            data<int32_t>(col), candidates.size(0),        num_users(),
            num_items,          col.size(0),               draw.size(1)};
  }

  Tensor draw, candidates, rowptr, col;
};

}  // namespace mmssl
