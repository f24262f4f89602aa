// BPR triples on the GPU: a launcher over raw pointers. Definition: sampling.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/sampling/sampling.h"

namespace mmssl::cuda {

// Bytes of scratch, aligned to 8.
int64_t sample_bpr_scratch(int64_t batch);

// Writes user, pos and neg, (B) each, as the CPU does from the same draws.
cudaError_t launch_sample_bpr(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg,
                              void* scratch, cudaStream_t stream);

}  // namespace mmssl::cuda
