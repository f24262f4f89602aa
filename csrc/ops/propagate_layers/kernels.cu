#include "ops/propagate_layers/kernels.cuh"

namespace mmssl::cuda {
namespace {

template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    scaled_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t n, A factor) {
  const int64_t k = global_thread();
  if (k < n) narrow(factor * widen(x[k]), y[k]);
}

}  // namespace

template <class T, class A>
cudaError_t launch_scaled(const T* x, T* y, int64_t n, A factor, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  MMSSL_LAUNCH((scaled_kernel<T, A>), num_blocks(n), kBlock, stream, x, y, n, factor);
  return cudaGetLastError();
}

template cudaError_t launch_scaled(const float*, float*, int64_t, float, cudaStream_t);
template cudaError_t launch_scaled(const bf16*, bf16*, int64_t, float, cudaStream_t);
template cudaError_t launch_scaled(const double*, double*, int64_t, double, cudaStream_t);

}  // namespace mmssl::cuda
