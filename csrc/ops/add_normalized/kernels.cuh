// out = base + weight * sum_m x_m / max(|x_m|, eps) on the GPU: launchers over raw pointers. Shapes:
// add_normalized.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/add_normalized/add_normalized.h"

namespace mmssl::cuda {

template <class T, class A>
cudaError_t launch_add_normalized(const NormalizedSize& size, const T* base, const T* x, A weight,
                                  T* out, A* inverse, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_add_normalized_backward(const NormalizedSize& size, const T* grad, const T* x,
                                           const A* inverse, A weight, T* grad_x,
                                           cudaStream_t stream);

}  // namespace mmssl::cuda
