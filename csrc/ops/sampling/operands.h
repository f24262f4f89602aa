// Checks and unpacks the tensors of sample_bpr, and binds it to the kernels of either device. Shapes:
// sampling.h.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/sampling/sampling.h"

namespace mmssl {

// The CPU kernel checks draws, users and rowptr as it reads them. A GPU does not, since reporting
// would wait for the device.
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

  SampleArgs args(int64_t num_items) const {
    return {data<double>(draw), data<int64_t>(candidates), data<int64_t>(rowptr),
            data<int32_t>(col), candidates.size(0),        num_users(),
            num_items,          col.size(0),               draw.size(1)};
  }

  Tensor draw, candidates, rowptr, col;
};

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> sample_bpr(const Tensor& draw, const Tensor& candidates,
                                              const Tensor& rowptr, const Tensor& col,
                                              int64_t num_items) {
  const SampleOperands o(draw, candidates, rowptr, col);
  const Kernels kernels(o);
  const Tensor user = o.new_ids(), pos = o.new_ids(), neg = o.new_ids();
  kernels.sample(o.args(num_items), mutable_data<int64_t>(user), mutable_data<int64_t>(pos),
                 mutable_data<int64_t>(neg));
  return {user, pos, neg};
}

}  // namespace mmssl
