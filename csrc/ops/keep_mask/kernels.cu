// A thread per word of the generator, which decides on four elements.
#include "ops/keep_mask/kernels.cuh"

namespace mmssl::cuda {
namespace {

__global__ void __launch_bounds__(kBlock)
    keep_kernel(const int64_t* __restrict__ seed, int64_t count, int16_t limit,
                uint8_t* __restrict__ keep, int64_t n) {
  const int64_t words = ceil_div(n, 4), which = global_thread() / words;
  if (which >= count) return;
  const int64_t w = global_thread() - which * words;
  keep += which * n;
  uint64_t z = uint64_t(seed[which]) + uint64_t(w + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  uint32_t bytes = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    bytes |= uint32_t(int16_t(uint16_t(z >> (16 * j))) >= limit) << (8 * j);
  }
  if (4 * w + 4 <= n && (n % 4 == 0 || which == 0)) {
    *reinterpret_cast<uint32_t*>(keep + 4 * w) = bytes;
  } else {
    for (int j = 0; j < 4 && 4 * w + j < n; ++j) keep[4 * w + j] = uint8_t(bytes >> (8 * j));
  }
}

}  // namespace

cudaError_t launch_keep_mask(const int64_t* seed, int64_t count, int16_t limit, uint8_t* keep,
                             int64_t n, cudaStream_t stream) {
  if (count * n == 0) return cudaSuccess;
  MMSSL_LAUNCH(keep_kernel, num_blocks(count * ceil_div(n, 4)), kBlock, stream, seed, count, limit,
               keep, n);
  return cudaGetLastError();
}

}  // namespace mmssl::cuda
