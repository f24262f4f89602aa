// Schema of keep_mask and its binding to the CPU kernel.
#include "ops/keep_mask/keep_mask.h"
#include "ops/keep_mask/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const KeepMaskOperands&) {}

  void fill(const int64_t* seed, int16_t limit, uint8_t* keep, int64_t n) const {
    cpu::keep_mask(static_cast<uint64_t>(*seed), limit, keep, n, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("keep_mask(Tensor seed, SymInt n, int limit) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("keep_mask", TORCH_BOX(&keep_mask<Kernels>)); }
