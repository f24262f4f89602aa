// The mask of dropout on the GPU: a launcher over raw pointers. Definition: keep_mask.h.
#pragma once
#include "common/cuda_kernel.h"

namespace mmssl::cuda {

// keep (K, n) of 0 and 1, aligned to 4 bytes; seed (K).
cudaError_t launch_keep_mask(const int64_t* seed, int64_t count, int16_t limit, uint8_t* keep,
                             int64_t n, cudaStream_t stream);

}  // namespace mmssl::cuda
