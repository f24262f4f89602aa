// The rows of two tables, users and items, in one launch: what add_normalized computes of each, with the
// mean of several layers as the base.
#pragma once
#include "common/cuda_kernel.h"

namespace mmssl::cuda {

// A table of N rows of D features, its M views and its layers. Row n of view m starts at
// m * view_step + n * row_step; layers and gradients are contiguous.
template <class A>
struct NormalizedTable {
  static constexpr int kMostLayers = 8;
  int64_t rows = 0;  // N
  const A* x = nullptr;
  int64_t view_step = 0, row_step = 0;
  const A* layer[kMostLayers] = {};  // (N, D) each
  const A* grad = nullptr;           // (N, D), backward only, as what follows
  // Added to the gradient for x, with steps of their own; may be null.
  static constexpr int kMostAdded = 3;
  const A* more[kMostAdded] = {};
  int64_t more_view_step[kMostAdded] = {}, more_row_step[kMostAdded] = {};
};

// Packed rows n: those of the first table, then those of the second, N of them together.
template <class A>
struct NormalizedTables {
  int64_t views, dim;  // M, D
  int layers;
  A scale, weight;
  NormalizedTable<A> table[2];
  A* inverse;  // (M, N): 1 / max(|x_m|, eps), negative where eps was the larger
};

// out (N, D) = scale * (sum of the layers) + weight * sum_m x_m / max(|x_m|, eps)
template <class A>
cudaError_t launch_normalized_tables(const NormalizedTables<A>& a, A* out, cudaStream_t stream);

// grad_x (N, M, D)
template <class A>
cudaError_t launch_normalized_tables_backward(const NormalizedTables<A>& a, A* grad_x,
                                                  cudaStream_t stream);

}  // namespace mmssl::cuda
