// Schema of keep_mask and its binding to the CPU kernel.
#include "ops/keep_mask/keep_mask.h"
#include "ops/keep_mask/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const KeepMaskOperands&) {}

  void fill(const int64_t* seed, int64_t count, int16_t limit, uint8_t* keep, int64_t n) const {
    for (int64_t k = 0; k < count; ++k) {
      cpu::keep_mask(static_cast<uint64_t>(seed[k]), limit, keep + k * n, n, torch_threads());
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  // K masks of n elements, one after the other.
  m.def("keep_mask(Tensor seed, SymInt n, int limit) -> Tensor");
  // For a GPU: the masks of several layers, and dropout of blocks of columns with a bias.
  m.def("keep_masks(Tensor seed, int[] n, int[] limit) -> Tensor[]");
  m.def(
      "drop_columns(Tensor x, Tensor[] bias, Tensor seed, int limit, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("keep_mask", TORCH_BOX(&keep_mask<Kernels>)); }
