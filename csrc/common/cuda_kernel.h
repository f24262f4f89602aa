// Shared by the CUDA kernels: one source for nvcc, for the host compiler of the bindings (types
// only) and, under MMSSL_EMULATE_CUDA, for the emulator of the tests.
#pragma once
#include <cstdint>

#include "common/bf16.h"

#if defined(MMSSL_EMULATE_CUDA)
#include "emu/cuda_emu.h"
#define MMSSL_LAUNCH(kernel, grid, block, stream, ...) \
  emu::launch(grid, block, 0, stream, [&] { kernel(__VA_ARGS__); })
#define MMSSL_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  emu::launch(grid, block, bytes, stream, [&] { kernel(__VA_ARGS__); })
#define MMSSL_DYNAMIC_SHARED(name) char* const name = static_cast<char*>(emu::shared_base())
#else
#include <cuda_runtime_api.h>
#define MMSSL_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
// With that many bytes of dynamic shared memory; above 48 KiB they have to be asked for.
#define MMSSL_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)                               \
  (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),          \
   kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__))
#define MMSSL_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) char name[]
#endif

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kBlock = 256;      // threads of a block that streams through memory
constexpr int kTileBlock = 128;  // of a block that keeps tiles in shared memory and in registers

__host__ __device__ inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The largest shared memory of a block on the current device, in bytes.
inline int max_shared_memory() {
#if defined(MMSSL_EMULATE_CUDA)
  return 227 << 10;
#else
  int device = 0, bytes = 48 << 10;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return bytes;
#endif
}

// Blocks for that many threads.
inline unsigned num_blocks(int64_t threads, int block = kBlock) {
  return unsigned(ceil_div(threads, block));
}

// The index of this thread in the grid.
template <int kThreads = kBlock>
__device__ __forceinline__ int64_t global_thread() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}

// The sum over each group of kLanes lanes, in all of them.
template <int kLanes = kWarp, class A>
__device__ __forceinline__ A sum_of_lanes(A v) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(kAllLanes, v, mask);
  return v;
}

// The row that holds position p: the last one that starts at or before it.
__device__ __forceinline__ int64_t row_of(const int64_t* rowptr, int64_t rows, int64_t p) {
  int64_t low = 0, high = rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (rowptr[middle] <= p) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace mmssl::cuda
#endif
