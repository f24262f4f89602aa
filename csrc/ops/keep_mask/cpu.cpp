// Schema of keep_mask and its binding to the CPU kernel.
#include "ops/keep_mask/keep_mask.h"
#include "ops/keep_mask/operands.h"

namespace {

using namespace mmssl;

Tensor keep_mask(const Tensor& seed, int64_t n, int64_t limit) {
  const KeepMaskOperands o(seed, n, limit);
  Tensor keep = o.new_keep();
  cpu::keep_mask(static_cast<uint64_t>(*data<int64_t>(o.seed)), o.limit,
                 mutable_data<uint8_t>(keep), o.n, torch_threads());
  return keep;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("keep_mask(Tensor seed, SymInt n, int limit) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("keep_mask", TORCH_BOX(&keep_mask)); }
