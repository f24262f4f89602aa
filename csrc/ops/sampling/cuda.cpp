// Binds sample_bpr to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/sampling/kernels.cuh"
#include "ops/sampling/operands.h"

namespace {

using namespace mmssl;

struct Kernels : cuda::Launch {
  explicit Kernels(const SampleOperands& o)
      : Launch(o.draw, cuda::sample_bpr_scratch(o.draw.size(1))) {}

  void sample(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg) const {
    STD_TORCH_CHECK(a.batch < int64_t(1) << 30,
                    "mmssl::sample_bpr: on a GPU at most 2^30 - 1 triples, got ", a.batch);
    MMSSL_CUDA_CHECK(
        cuda::launch_sample_bpr(a, user, pos, neg, scratch<void>(), device.stream));
  }
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) { m.impl("sample_bpr", TORCH_BOX(&sample_bpr<Kernels>)); }
