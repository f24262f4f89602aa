// The mask of dropout on the GPU: a launcher over raw pointers. Definition: keep_mask.h.
#pragma once
#include "common/cuda_kernel.h"

namespace mmssl::cuda {

// K rounds of the masks of some layers.
struct KeepMasks {
  static constexpr int kMost = 4;
  int64_t count;          // K
  int layers;             // L
  const int64_t* seed;    // (K, L)
  int64_t n[kMost];       // elements of a mask
  int16_t limit[kMost];
  uint8_t* keep[kMost];   // (K, n) of 0 and 1, aligned to 4 bytes
};

// out (N, K D) = keep * scale * (x + bias) with a mask (N, D) of each of K blocks of columns.
template <class A>
struct DropColumns {
  static constexpr int kMost = 8;
  int64_t rows, blocks, width;  // N, K, D
  const A* x;
  const A* bias[kMost];         // (D) for each block, or null
  const int64_t* seed;          // (K)
  int16_t limit;
  A scale;
  A* out;
};

// Each in one launch.
cudaError_t launch_keep_masks(const KeepMasks& a, cudaStream_t stream);
template <class A>
cudaError_t launch_drop_columns(const DropColumns<A>& a, cudaStream_t stream);

}  // namespace mmssl::cuda
