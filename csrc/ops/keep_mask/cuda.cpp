// Binds keep_mask to its CUDA kernel.
#include "common/cuda_binding.h"
#include "ops/keep_mask/kernels.cuh"
#include "ops/keep_mask/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const KeepMaskOperands& o) : device_(o.seed) {}

  void fill(const int64_t* seed, int64_t count, int16_t limit, uint8_t* keep, int64_t n) const {
    MMSSL_CUDA_CHECK(cuda::launch_keep_mask(seed, count, limit, keep, n, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) { m.impl("keep_mask", TORCH_BOX(&keep_mask<Kernels>)); }
