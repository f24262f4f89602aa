// A warp per row of the result: its lanes form the norms of all views, then the features.
#include "ops/add_normalized/kernels.cuh"

#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr double kEps = 1e-12;  // of torch.nn.functional.normalize

template <class T, class A>
__device__ __forceinline__ A dot_of_warp(const T* a, const T* b, int64_t d) {
  A sum = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) sum += A(widen(a[k])) * A(widen(b[k]));
  return sum_of_lanes(sum);
}

template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    add_kernel(NormalizedSize size, const T* __restrict__ base, const T* __restrict__ x, A weight,
               T* __restrict__ out, A* inverse) {
  const int64_t n = global_thread() / kWarp, lane = threadIdx.x % kWarp, d = size.dim;
  if (n >= size.rows) return;  // a whole warp
  const T* row = x + n * size.row_step;
  for (int64_t m = 0; m < size.views; ++m) {
    const T* v = row + m * size.view_step;
    const A norm = std::sqrt(dot_of_warp<T, A>(v, v, d));
    if (lane == 0) inverse[m * size.rows + n] = norm > A(kEps) ? 1 / norm : -1 / A(kEps);
  }
  __syncwarp();  // the lanes read what the first one has written
  for (int64_t k = lane; k < d; k += kWarp) {
    A sum = 0;
    for (int64_t m = 0; m < size.views; ++m) {
      const A inv = inverse[m * size.rows + n];
      sum += widen(row[m * size.view_step + k]) * (inv < 0 ? -inv : inv);
    }
    narrow(widen(base[n * d + k]) + weight * sum, out[n * d + k]);
  }
}

// grad_x = weight * inverse * (g - xhat <g, xhat>); where eps was the larger, without xhat.
template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    grad_kernel(NormalizedSize size, const T* __restrict__ grad, const T* __restrict__ x,
                const A* __restrict__ inverse, A weight, T* __restrict__ grad_x) {
  const int64_t n = global_thread() / kWarp, d = size.dim;
  if (n >= size.rows) return;
  const T* g = grad + n * d;
  for (int64_t m = 0; m < size.views; ++m) {
    const int64_t at = m * size.view_step + n * size.row_step;
    const A inv = inverse[m * size.rows + n], dot = dot_of_warp<T, A>(g, x + at, d);
    const A along = inv < 0 ? A(0) : inv * inv * dot, scale = weight * (inv < 0 ? -inv : inv);
    for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
      narrow(scale * (widen(g[k]) - along * widen(x[at + k])), grad_x[at + k]);
    }
  }
}

// The length that a row gets.
template <class A>
__device__ __forceinline__ A length_of(const OffsetArgs<A>& a, int64_t n) {
  if (a.offset == nullptr) return A(a.radius);
  const double offset = a.offset[n];
  return A(sqrt(a.radius * a.radius - offset * offset));
}

template <class A>
__global__ void __launch_bounds__(kBlock)
    offset_kernel(const __grid_constant__ OffsetArgs<A> a, A* __restrict__ out) {
  const int64_t n = global_thread() / kWarp, lane = threadIdx.x % kWarp, d = a.dim;
  if (n >= a.rows) return;
  const A* x = a.x + n * d;
  const A norm = std::sqrt(dot_of_warp<A, A>(x, x, d));
  const A scale = length_of(a, n) / (norm > A(kEps) ? norm : A(kEps));
  for (int64_t k = lane; k < d; k += kWarp) out[n * (d + 1) + k] = scale * x[k];
  if (lane == 0) out[n * (d + 1) + d] = a.offset == nullptr ? A(1) : a.offset[n];
}

template <class A>
__global__ void __launch_bounds__(kBlock)
    offset_grad_kernel(const __grid_constant__ OffsetArgs<A> a, const A* __restrict__ grad,
                       A* __restrict__ grad_x) {
  const int64_t n = global_thread() / kWarp, lane = threadIdx.x % kWarp, d = a.dim;
  if (n >= a.rows) return;
  const A* x = a.x + n * d;
  const A* g = grad + n * (d + 1);
  const A norm = std::sqrt(dot_of_warp<A, A>(x, x, d)), dot = dot_of_warp<A, A>(g, x, d);
  const bool zero = !(norm > A(kEps));
  const A scale = length_of(a, n) / (zero ? A(kEps) : norm);
  const A along = zero ? A(0) : dot / norm / norm;
  for (int64_t k = lane; k < d; k += kWarp) grad_x[n * d + k] = scale * (g[k] - along * x[k]);
}

}  // namespace

template <class A>
cudaError_t launch_offset_rows(const OffsetArgs<A>& a, A* out, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((offset_kernel<A>), num_blocks(a.rows * kWarp), kBlock, stream, a, out);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_offset_rows_backward(const OffsetArgs<A>& a, const A* grad, A* grad_x,
                                        cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((offset_grad_kernel<A>), num_blocks(a.rows * kWarp), kBlock, stream, a, grad, grad_x);
  return cudaGetLastError();
}
template cudaError_t launch_offset_rows(const OffsetArgs<float>&, float*, cudaStream_t);
template cudaError_t launch_offset_rows(const OffsetArgs<double>&, double*, cudaStream_t);
template cudaError_t launch_offset_rows_backward(const OffsetArgs<float>&, const float*, float*,
                                                 cudaStream_t);
template cudaError_t launch_offset_rows_backward(const OffsetArgs<double>&, const double*, double*,
                                                 cudaStream_t);

template <class T, class A>
cudaError_t launch_add_normalized(const NormalizedSize& size, const T* base, const T* x, A weight,
                                  T* out, A* inverse, cudaStream_t stream) {
  if (size.rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((add_kernel<T, A>), num_blocks(size.rows * kWarp), kBlock, stream, size, base, x,
               weight, out, inverse);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t launch_add_normalized_backward(const NormalizedSize& size, const T* grad, const T* x,
                                           const A* inverse, A weight, T* grad_x,
                                           cudaStream_t stream) {
  if (size.rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((grad_kernel<T, A>), num_blocks(size.rows * kWarp), kBlock, stream, size, grad, x,
               inverse, weight, grad_x);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T, A)                                                              \
  template cudaError_t launch_add_normalized(const NormalizedSize&, const T*, const T*, A, T*, \
                                             A*, cudaStream_t);                              \
  template cudaError_t launch_add_normalized_backward(const NormalizedSize&, const T*, const T*, \
                                                      const A*, A, T*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
