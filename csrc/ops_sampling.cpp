// Schema of sample_bpr and its binding to the CPU. The draws come from torch's generator: the stable
// ABI does not reach its state.
#include <tuple>

#include "common/stable_args.h"
#include "cpu/sampling.h"

namespace {

using mmssl::ScalarType;
using mmssl::Tensor;

std::tuple<Tensor, Tensor, Tensor> sample_bpr(const Tensor& draw_, const Tensor& candidates_,
                                              const Tensor& rowptr_, const Tensor& col_,
                                              int64_t num_items) {
  const Tensor draw = mmssl::as_contiguous(draw_), rowptr = mmssl::as_contiguous(rowptr_);
  const Tensor candidates = mmssl::as_contiguous(candidates_);
  const Tensor col = mmssl::as_contiguous(col_);
  STD_TORCH_CHECK(draw.dim() == 2 && draw.size(0) == 3 && draw.scalar_type() == ScalarType::Double,
                  "mmssl::sample_bpr: draw must be (3, B) float64");
  STD_TORCH_CHECK(candidates.dim() == 1 && candidates.scalar_type() == ScalarType::Long &&
                      candidates.size(0) >= draw.size(1),
                  "mmssl::sample_bpr: candidates must be (n,) int64 with n >= B");
  STD_TORCH_CHECK(rowptr.dim() == 1 && rowptr.size(0) >= 1 && col.dim() == 1 &&
                      rowptr.scalar_type() == ScalarType::Long &&
                      col.scalar_type() == ScalarType::Int,
                  "mmssl::sample_bpr: rowptr must be (U + 1,) int64 and col (E,) int32");
  const mmssl::cpu::SampleArgs args{
      mmssl::data<double>(draw), mmssl::data<int64_t>(candidates), mmssl::data<int64_t>(rowptr),
      mmssl::data<int32_t>(col), candidates.size(0),               rowptr.size(0) - 1,
      num_items,                 col.size(0),                      draw.size(1)};
  Tensor user = torch::stable::new_empty(candidates, {args.batch});
  Tensor pos = torch::stable::new_empty(candidates, {args.batch});
  Tensor neg = torch::stable::new_empty(candidates, {args.batch});
  const int64_t bad = mmssl::cpu::sample_bpr(args, mmssl::mutable_data<int64_t>(user),
                                             mmssl::mutable_data<int64_t>(pos),
                                             mmssl::mutable_data<int64_t>(neg));
  STD_TORCH_CHECK(bad < 0, "mmssl::sample_bpr: triple ", bad,
                  " needs draws in [0, 1) and a user in [0, ", rowptr.size(0) - 1,
                  ") with an item of col and without one");
  return {user, pos, neg};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "sample_bpr(Tensor draw, Tensor candidates, Tensor rowptr, Tensor col, int num_items) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("sample_bpr", TORCH_BOX(&sample_bpr)); }
