// InfoNCE on the GPU: launchers over raw pointers. The formula and the shapes are those of
// cpu/info_nce.h; the temperature stays on the device, so nothing waits for it.
#pragma once
#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
#include "common/cuda_launch.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "common/bf16.h"

namespace mmssl::cuda {

// How float32 products are formed: plain multiply-adds, or tensor cores on TF32 operands.
enum class Precision { kFull, kTf32 };

struct InfoNceShape {
  int64_t pairs, n, k, d;  // B, N, K, D
  bool intra_view, symmetric;
  double eps;
  Precision precision;
  int processors;  // multiprocessors to keep busy
};

// Bytes of scratch that a launch needs, aligned to 256.
template <class T, class A>
int64_t info_nce_scratch(const InfoNceShape& shape, bool backward);

// loss (B, N); saved (directions + 1, B, N): lse of each direction, then s12_ii.
template <class T, class A>
cudaError_t launch_info_nce(const InfoNceShape& shape, const T* anchor, const T* positive,
                            const T* negatives, const A* temperature, A* loss, double* saved,
                            void* scratch, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_info_nce_backward(const InfoNceShape& shape, const T* anchor, const T* positive,
                                     const T* negatives, const A* temperature, const double* saved,
                                     const A* grad, T* grad_anchor, T* grad_positive,
                                     T* grad_negatives, A* grad_temperature, void* scratch,
                                     cudaStream_t stream);

}  // namespace mmssl::cuda
