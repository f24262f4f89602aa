// What lies between the large products of the adversarial task: a few numbers per row and per edge of
// a batch. A warp owns a row. Scores of edges are formed by groups of kGroup lanes, several edges at
// a time; everything else by all lanes along the features or along the edges.
#include "ops/similarity/kernels.cuh"

#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr int kGroup = 8;  // lanes of a score
constexpr int kEdgesAtOnce = kWarp / kGroup;

// The edges of a row, and this row's share of what lies behind all edges.
struct Row {
  __device__ Row(const BatchRows& e, int64_t row)
      : begin(e.rowptr[row]), end(e.rowptr[row + 1]) {
    const int64_t used = e.rowptr[e.rows], left = e.capacity - used;
    tail_begin = used + left * row / e.rows;
    tail_end = used + left * (row + 1) / e.rows;
  }
  int64_t begin, end, tail_begin, tail_end;
};

__device__ __forceinline__ int lane_of() { return int(threadIdx.x % kWarp); }

// A row of a block, and the tables that belong to it.
template <class T>
struct BlockRow : Row {
  __device__ BlockRow(const SimilarityArgs<T>& a, int64_t at, int64_t block)
      : Row(a.edges, at - block * a.edges.rows),
        edge(block * a.edges.capacity),
        user(a.user + at * a.d),
        item(a.item + block * a.item_block) {}
  int64_t edge;  // where the block's values of edges begin
  const T *user, *item;
};

template <class T>
__global__ void __launch_bounds__(kBlock, 4)
    factors_kernel(const __grid_constant__ SimilarityArgs<T> a,
                   const __grid_constant__ SimilarityFactors<T> out) {
  const int64_t at = global_thread() / kWarp;
  if (at >= a.blocks * a.edges.rows) return;
  const BlockRow<T> row(a, at, at / a.edges.rows);
  const int lane = lane_of();
  const T *__restrict__ user = row.user, *__restrict__ item = row.item;
  T* __restrict__ masked = out.masked + row.edge;

  double whole = 0;
  for (int64_t k = lane; k < a.d; k += kWarp) whole += a.through[at * a.d + k] * double(user[k]);
  whole = sum_of_lanes(whole);
  double squares = 0;
  for (int64_t first = row.begin; first < row.end; first += kEdgesAtOnce) {
    const int64_t p = first + lane / kGroup;
    T score = 0;
    if (p < row.end) {
      const T* other = item + a.edges.col[p] * a.item_row;
#pragma unroll 4
      for (int64_t k = lane % kGroup; k < a.d; k += kGroup) score += user[k] * other[k];
    }
    score = sum_of_lanes<kGroup>(score);
    if (p < row.end && lane % kGroup == 0) {
      masked[p] = score;
      squares += double(score) * double(score);
    }
  }
  const double square = whole - sum_of_lanes(squares);
  const bool kept = square > kRoundingShare * whole;
  constexpr double kSmallest = kSmallestNorm * kSmallestNorm;
  const T scale = kept ? T(rsqrt(square < kSmallest ? kSmallest : square)) : T(0);
  __syncwarp();  // lanes read the scores of others
  T* value = out.value + row.edge;
  for (int64_t p = row.begin + lane; p < row.end; p += kWarp) value[p] = -scale * masked[p];
  for (int64_t p = row.tail_begin + lane; p < row.tail_end; p += kWarp) masked[p] = value[p] = 0;
  for (int64_t k = lane; k < a.d; k += kWarp) out.left[at * a.d + k] = scale * user[k];
  if (lane == 0) out.scale[at] = scale;
}

template <class T>
__global__ void __launch_bounds__(kBlock, 4)
    gradient_kernel(const __grid_constant__ SimilarityArgs<T> a,
                    const __grid_constant__ SimilarityGradient<T> g) {
  const int64_t at = global_thread() / kWarp;
  if (at >= a.blocks * a.edges.rows) return;
  const BlockRow<T> row(a, at, at / a.edges.rows);
  const int lane = lane_of();
  const T *__restrict__ user = row.user, *__restrict__ item = row.item;
  const T* __restrict__ to_left = g.to_left + at * a.d;
  const T* __restrict__ to_value = g.to_value + row.edge;
  const T* __restrict__ masked = g.masked + row.edge;
  const T scale = g.scale[at];

  T to_scale = 0;
  for (int64_t k = lane; k < a.d; k += kWarp) to_scale += to_left[k] * user[k];
  for (int64_t p = row.begin + lane; p < row.end; p += kWarp) to_scale -= to_value[p] * masked[p];
  to_scale = sum_of_lanes(to_scale);
  // Twice the gradient of the squared length. A scale at its bound is a constant.
  const T to_square = scale < T(1 / kSmallestNorm) ? -scale * scale * scale * to_scale : T(0);
  const auto to_masked = [&](int64_t p) { return -(scale * to_value[p] + to_square * masked[p]); };

  for (int64_t k = lane; k < a.d; k += kWarp) {
    T sum = scale * to_left[k] + to_square * T(a.through[at * a.d + k]);
#pragma unroll 4
    for (int64_t p = row.begin; p < row.end; ++p) {
      sum += to_masked(p) * item[a.edges.col[p] * a.item_row + k];
    }
    g.to_user[at * a.d + k] = sum;
    g.weighted[at * a.d + k] = to_square * user[k];
  }
  T* out = g.to_masked + row.edge;
  for (int64_t p = row.begin + lane; p < row.end; p += kWarp) out[p] = to_masked(p);
  for (int64_t p = row.tail_begin + lane; p < row.tail_end; p += kWarp) out[p] = 0;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    tables_kernel(const __grid_constant__ SimilarityTables<T> a) {
  const int64_t at = global_thread(), of_block = (a.rows + a.items) * a.d;
  if (at >= a.blocks * of_block) return;
  const int64_t block = at / of_block, rest = at % of_block, k = rest % a.d, row = rest / a.d;
  if (row < a.rows) {
    const T value = a.user[block][a.users[row] * a.user_step[block] + k];
    const int64_t to = (block * a.rows + row) * a.d + k;
    a.out_user[to] = value, a.wide_user[to] = double(value);
    return;
  }
  const int64_t item = row - a.rows;
  const T value = a.item[block][item * a.item_step[block] + k];
  a.out_item[(item * a.blocks + block) * a.d + k] = value;
  a.wide_item[(block * a.items + item) * a.d + k] = double(value);
}

template <class T>
__global__ void __launch_bounds__(kBlock) gumbel_kernel(const __grid_constant__ RealRowArgs<T> a) {
  const int64_t at = global_thread() / kWarp;
  if (at >= a.edges.rows) return;
  const Row row(a.edges, at);
  const int lane = lane_of();
  // The logits of a row have 1 / tau in common, which cancels.
  const auto weight = [&](int64_t p) {
    const T eps = T(kLogEps);
    return T(exp(-a.noise * log(eps - log(a.uniform[p] + eps)) / a.tau));
  };
  T sum = 0, squares = 0, size = 0;
#pragma unroll 1
  for (int64_t p = row.begin + lane; p < row.end; p += kWarp) {
    const T own = weight(p);
    sum += own, squares += own * own;
  }
  sum = sum_of_lanes(sum), squares = sum_of_lanes(squares) / (sum * sum);
  for (int64_t k = lane; k < a.d; k += kWarp) size += a.left[at * a.d + k] != 0 ? T(1) : T(0);
  if (row.begin == row.end) squares = 0;
  // A similarity row has length 1 unless it is 0, and nothing on the edges.
  if (sum_of_lanes(size) > 0) squares += a.zeta * a.zeta;
  const T scale = 1 / sqrt(squares);
#pragma unroll 1
  for (int64_t p = row.begin + lane; p < row.end; p += kWarp) {
    a.value[p] = scale * (weight(p) / sum + a.zeta * a.value[p]);
  }
  for (int64_t p = row.tail_begin + lane; p < row.tail_end; p += kWarp) a.value[p] = 0;
  for (int64_t k = lane; k < a.d; k += kWarp) a.left[at * a.d + k] *= a.zeta * scale;
}

// A thread per edge of the result, per row and per column. Blocks lie close together, and behind them
// what lies behind their edges.
__global__ void __launch_bounds__(kBlock) stack_kernel(const __grid_constant__ StackedEdges a) {
  const int64_t rows = a.edges.rows, n = a.edges.capacity, used = a.edges.rowptr[rows];
  int64_t at = global_thread();
  if (at < a.blocks * n) {
    const int64_t block = at % a.blocks, p = at / a.blocks;
    const int64_t to = p < used ? block * used + p : a.blocks * used + block * (n - used) + p - used;
    a.out_col[to] = a.edges.col[p];
    a.out_edge[to] = block * n + p;
    a.out_t_col[at] = a.t_col[p] + int32_t(block * rows);
    a.out_t_edge[at] = a.t_edge[p] + block * n;
    return;
  }
  at -= a.blocks * n;
  if (at <= a.blocks * rows) {
    const int64_t block = rows == 0 ? 0 : at / rows, row = at - block * rows;
    a.out_rowptr[at] = block * used + a.edges.rowptr[row];
    return;
  }
  at -= a.blocks * rows + 1;
  if (at <= a.columns) a.out_t_rowptr[at] = a.t_rowptr[at] * a.blocks;
}

}  // namespace

template <class T>
cudaError_t launch_similarity_tables(const SimilarityTables<T>& a, cudaStream_t stream) {
  const int64_t threads = a.blocks * (a.rows + a.items) * a.d;
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH((tables_kernel<T>), num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_similarity_factors(const SimilarityArgs<T>& a, const SimilarityFactors<T>& out,
                                      cudaStream_t stream) {
  const int64_t rows = a.blocks * a.edges.rows;
  if (rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((factors_kernel<T>), num_blocks(rows * kWarp), kBlock, stream, a, out);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_similarity_factors_backward(const SimilarityArgs<T>& a,
                                               const SimilarityGradient<T>& g,
                                               cudaStream_t stream) {
  const int64_t rows = a.blocks * a.edges.rows;
  if (rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((gradient_kernel<T>), num_blocks(rows * kWarp), kBlock, stream, a, g);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_gumbel_rows(const RealRowArgs<T>& a, cudaStream_t stream) {
  if (a.edges.rows == 0) return cudaSuccess;
  MMSSL_LAUNCH((gumbel_kernel<T>), num_blocks(a.edges.rows * kWarp), kBlock, stream, a);
  return cudaGetLastError();
}

cudaError_t launch_stack_edges(const StackedEdges& a, cudaStream_t stream) {
  const int64_t threads = a.blocks * (a.edges.capacity + a.edges.rows) + a.columns + 2;
  MMSSL_LAUNCH(stack_kernel, num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T)                                                                  \
  template cudaError_t launch_similarity_tables(const SimilarityTables<T>&, cudaStream_t);    \
  template cudaError_t launch_similarity_factors(const SimilarityArgs<T>&,                    \
                                                 const SimilarityFactors<T>&, cudaStream_t);  \
  template cudaError_t launch_similarity_factors_backward(                                    \
      const SimilarityArgs<T>&, const SimilarityGradient<T>&, cudaStream_t);                  \
  template cudaError_t launch_gumbel_rows(const RealRowArgs<T>&, cudaStream_t);
MMSSL_INSTANTIATE(float)
MMSSL_INSTANTIATE(double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
