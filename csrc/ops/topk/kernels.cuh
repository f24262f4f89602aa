// Score, mask and select on the GPU: a launcher over raw pointers. The results are those of the
// CPU, bit for bit where that has fused multiply-adds.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/topk/topk.h"

namespace mmssl::cuda {

// Longer lists would not fit in the shared memory in which they are sorted.
constexpr int64_t kMaxTopk = 1024;

// Bytes of scratch, aligned to 256, that a launch needs on a device with that many multiprocessors.
template <class T, class A>
int64_t topk_scratch(const TopkArgs<T, A>& a, int processors);

// k is at most kMaxTopk. A user out of range gets an empty list, since nothing waits for the
// device.
template <class T, class A>
cudaError_t launch_masked_topk(const TopkArgs<T, A>& a, void* scratch, int processors,
                               cudaStream_t stream);

}  // namespace mmssl::cuda
