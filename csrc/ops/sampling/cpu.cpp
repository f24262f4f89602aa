// Schema of sample_bpr and its binding to the CPU. The draws come from torch's generator, whose
// state is out of reach of the stable ABI.
#include "ops/sampling/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const SampleOperands&) {}

  void sample(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg) const {
    const int64_t bad = cpu::sample_bpr(a, user, pos, neg);
    STD_TORCH_CHECK(bad < 0, "mmssl::sample_bpr: triple ", bad,
                    " needs draws in [0, 1) and a user in [0, ", a.num_users,
                    ") with an item of col and without one");
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "sample_bpr(Tensor draw, Tensor candidates, Tensor rowptr, Tensor col, int num_items) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("sample_bpr", TORCH_BOX(&sample_bpr<Kernels>)); }
