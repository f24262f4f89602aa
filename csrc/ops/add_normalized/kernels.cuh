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

// Rows scaled to one length, and one column more: out (N, D + 1) = [radius x / |x|, 1] without an
// offset (N), else [sqrt(radius^2 - offset^2) x / |x|, offset].
template <class A>
struct OffsetArgs {
  int64_t rows, dim;
  const A* x;       // (N, D)
  const A* offset;  // (N) or null
  double radius;
};

// Each in one launch.
template <class A>
cudaError_t launch_offset_rows(const OffsetArgs<A>& a, A* out, cudaStream_t stream);

// grad (N, D + 1), grad_x (N, D)
template <class A>
cudaError_t launch_offset_rows_backward(const OffsetArgs<A>& a, const A* grad, A* grad_x,
                                        cudaStream_t stream);

}  // namespace mmssl::cuda
