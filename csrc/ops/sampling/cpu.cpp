// Schema of sample_bpr and its binding to the CPU. The draws come from torch's generator, whose
// state is out of reach of the stable ABI.
#include <tuple>

#include "ops/sampling/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor, Tensor> sample_bpr(const Tensor& draw, const Tensor& candidates,
                                              const Tensor& rowptr, const Tensor& col,
                                              int64_t num_items) {
  const SampleOperands o(draw, candidates, rowptr, col);
  Tensor user = o.new_ids(), pos = o.new_ids(), neg = o.new_ids();
  const int64_t bad = cpu::sample_bpr(o.args(num_items), mutable_data<int64_t>(user),
                                      mutable_data<int64_t>(pos), mutable_data<int64_t>(neg));
  STD_TORCH_CHECK(bad < 0, "mmssl::sample_bpr: triple ", bad,
                  " needs draws in [0, 1) and a user in [0, ", o.num_users(),
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
