// A thread per word of the generator, which decides on four elements.
#include "ops/keep_mask/kernels.cuh"

namespace mmssl::cuda {
namespace {

__device__ __forceinline__ uint64_t word_of(int64_t seed, int64_t w) {
  uint64_t z = uint64_t(seed) + uint64_t(w + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

__device__ __forceinline__ bool keeps(uint64_t word, int j, int16_t limit) {
  return int16_t(uint16_t(word >> (16 * j))) >= limit;
}

__global__ void __launch_bounds__(kBlock) keep_kernel(const __grid_constant__ KeepMasks a) {
  int64_t at = global_thread();
  int layer = 0;
  for (; layer < a.layers && at >= a.count * ceil_div(a.n[layer], 4); ++layer) {
    at -= a.count * ceil_div(a.n[layer], 4);
  }
  if (layer == a.layers) return;
  const int64_t n = a.n[layer], words = ceil_div(n, 4), which = at / words, w = at - which * words;
  uint8_t* keep = a.keep[layer] + which * n;
  const uint64_t word = word_of(a.seed[which * a.layers + layer], w);
  uint32_t bytes = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) bytes |= uint32_t(keeps(word, j, a.limit[layer])) << (8 * j);
  if (4 * w + 4 <= n && (n % 4 == 0 || which == 0)) {
    *reinterpret_cast<uint32_t*>(keep + 4 * w) = bytes;
  } else {
    for (int j = 0; j < 4 && 4 * w + j < n; ++j) keep[4 * w + j] = uint8_t(bytes >> (8 * j));
  }
}

template <class A>
__global__ void __launch_bounds__(kBlock) drop_kernel(const __grid_constant__ DropColumns<A> a) {
  const int64_t n = a.rows * a.width, words = ceil_div(n, 4), block = global_thread() / words;
  if (block >= a.blocks) return;
  const int64_t w = global_thread() - block * words;
  const uint64_t word = word_of(a.seed[block], w);
  const A* bias = a.bias[block];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t element = 4 * w + j;
    if (element >= n) return;
    const int64_t row = element / a.width, column = element - row * a.width;
    const int64_t at = (row * a.blocks + block) * a.width + column;
    const A value = bias == nullptr ? a.x[at] : a.x[at] + bias[column];
    a.out[at] = keeps(word, j, a.limit) ? a.scale * value : A(0);
  }
}

}  // namespace

cudaError_t launch_keep_masks(const KeepMasks& a, cudaStream_t stream) {
  int64_t threads = 0;
  for (int layer = 0; layer < a.layers; ++layer) threads += a.count * ceil_div(a.n[layer], 4);
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH(keep_kernel, num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_drop_columns(const DropColumns<A>& a, cudaStream_t stream) {
  const int64_t threads = a.blocks * ceil_div(a.rows * a.width, 4);
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH((drop_kernel<A>), num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}
template cudaError_t launch_drop_columns(const DropColumns<float>&, cudaStream_t);
template cudaError_t launch_drop_columns(const DropColumns<double>&, cudaStream_t);

}  // namespace mmssl::cuda
