// The mask of dropout on the GPU: a launcher over raw pointers. Definition: keep_mask.h.
#pragma once
#include "common/cuda_kernel.h"

namespace mmssl::cuda {

// keep (n) of 0 and 1, aligned to 4 bytes; the seed is one number on the device.
cudaError_t launch_keep_mask(const int64_t* seed, int16_t limit, uint8_t* keep, int64_t n,
                             cudaStream_t stream);

}  // namespace mmssl::cuda
