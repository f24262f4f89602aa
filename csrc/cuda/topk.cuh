// Score, mask and select on the GPU: a launcher over raw pointers. The results are those of
// cpu/topk.h, bit for bit where that has fused multiply-adds.
#pragma once
#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
#include "common/cuda_launch.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "common/bf16.h"
#include "common/topk_args.h"

namespace mmssl::cuda {

// Longer lists would not fit the shared memory in which they are sorted.
constexpr int64_t kMaxTopk = 1024;

// Bytes of scratch that a launch needs on a device of so many multiprocessors, aligned to 256.
template <class T, class A>
int64_t topk_scratch(const TopkArgs<T, A>& a, int processors);

// k is at most kMaxTopk. A user out of range gets an empty list; nothing waits for the device.
template <class T, class A>
cudaError_t launch_masked_topk(const TopkArgs<T, A>& a, void* scratch, int processors,
                               cudaStream_t stream);

}  // namespace mmssl::cuda
