// A warp per row of the result, as in kernels.cu.
#include "ops/add_normalized/tables.cuh"

#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr double kEps = 1e-12;  // of torch.nn.functional.normalize

template <class A>
__device__ __forceinline__ A dot_of_warp(const A* a, const A* b, int64_t d) {
  A sum = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) sum += a[k] * b[k];
  return sum_of_lanes(sum);
}

// The table of a packed row, and the row in it.
template <class A>
struct PackedRow {
  __device__ PackedRow(const NormalizedTables<A>& a, int64_t packed)
      : all(a.table[0].rows + a.table[1].rows),
        second(packed >= a.table[0].rows),
        n(packed - (second ? a.table[0].rows : 0)) {}
  int64_t all;
  bool second;
  int64_t n;
};

template <class A>
__global__ void __launch_bounds__(kBlock, 4)
    tables_kernel(const __grid_constant__ NormalizedTables<A> a, A* __restrict__ out) {
  const int64_t packed = global_thread() / kWarp, lane = threadIdx.x % kWarp, d = a.dim;
  const PackedRow<A> row(a, packed);
  if (packed >= row.all) return;  // a whole warp
  const NormalizedTable<A>& t = a.table[row.second];
  const A* x = t.x + row.n * t.row_step;
  for (int64_t m = 0; m < a.views; ++m) {
    const A* v = x + m * t.view_step;
    const A norm = std::sqrt(dot_of_warp(v, v, d));
    if (lane == 0) a.inverse[m * row.all + packed] = norm > A(kEps) ? 1 / norm : -1 / A(kEps);
  }
  __syncwarp();  // the lanes read what the first one has written
  for (int64_t k = lane; k < d; k += kWarp) {
    A sum = 0, base = 0;
    for (int64_t m = 0; m < a.views; ++m) {
      sum += x[m * t.view_step + k] * std::abs(a.inverse[m * row.all + packed]);
    }
#pragma unroll
    for (int l = 0; l < NormalizedTable<A>::kMostLayers; ++l) {
      if (l < a.layers) base += t.layer[l][row.n * d + k];
    }
    out[packed * d + k] = a.scale * base + a.weight * sum;
  }
}

// weight * inverse * (g - xhat <g, xhat>); where eps was the larger, without xhat.
template <class A>
__global__ void __launch_bounds__(kBlock, 4)
    tables_grad_kernel(const __grid_constant__ NormalizedTables<A> a, A* __restrict__ grad_x) {
  const int64_t packed = global_thread() / kWarp, lane = threadIdx.x % kWarp, d = a.dim;
  const PackedRow<A> row(a, packed);
  if (packed >= row.all) return;
  const NormalizedTable<A>& t = a.table[row.second];
  const A* g = t.grad + row.n * d;
  for (int64_t m = 0; m < a.views; ++m) {
    const A* x = t.x + m * t.view_step + row.n * t.row_step;
    const auto more = [&](int which, int64_t k) {
      if (t.more[which] == nullptr) return A(0);
      return t.more[which][m * t.more_view_step[which] + row.n * t.more_row_step[which] + k];
    };
    const A inv = a.inverse[m * row.all + packed], dot = dot_of_warp(g, x, d);
    const A along = inv < 0 ? A(0) : inv * inv * dot, scale = a.weight * std::abs(inv);
    for (int64_t k = lane; k < d; k += kWarp) {
      const A own = scale * (g[k] - along * x[k]);
      grad_x[(packed * a.views + m) * d + k] = own + more(0, k) + more(1, k) + more(2, k);
    }
  }
}

}  // namespace

template <class A>
cudaError_t launch_normalized_tables(const NormalizedTables<A>& a, A* out, cudaStream_t stream) {
  const int64_t rows = a.table[0].rows + a.table[1].rows;
  if (rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((tables_kernel<A>), num_blocks(rows * kWarp), kBlock, stream, a, out);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_normalized_tables_backward(const NormalizedTables<A>& a, A* grad_x,
                                                  cudaStream_t stream) {
  const int64_t rows = a.table[0].rows + a.table[1].rows;
  if (rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((tables_grad_kernel<A>), num_blocks(rows * kWarp), kBlock, stream, a, grad_x);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(A)                                                                       \
  template cudaError_t launch_normalized_tables(const NormalizedTables<A>&, A*, cudaStream_t); \
  template cudaError_t launch_normalized_tables_backward(const NormalizedTables<A>&, A*,       \
                                                             cudaStream_t);
MMSSL_INSTANTIATE(float)
MMSSL_INSTANTIATE(double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
