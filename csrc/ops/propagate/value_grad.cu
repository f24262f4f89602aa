// The gradient of spmm for its values: a group of lanes of a warp takes one edge after the other.
#include "ops/propagate/gathers.cuh"
#include "ops/propagate/kernels.cuh"

namespace mmssl::cuda {
namespace {

constexpr int kEdgesPerGroup = 32;  // spreads the search for the row

// Group j takes positions [j, j + 1) * kEdgesPerGroup. Every lane of a warp runs every iteration,
// since all of them take part in the shuffles.
template <class T, class A, int kVec, int kLanes>
__global__ void __launch_bounds__(kBlock)
    value_grad_kernel(SparseArgs<A> a, const T* __restrict__ g, const T* __restrict__ x,
                      A* __restrict__ out, int64_t d) {
  const int64_t group = global_thread() / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t begin = group * kEdgesPerGroup;
  const int64_t edges = a.rowptr[a.rows];  // the arrays may be longer; what is behind has no gradient
  int64_t row = begin < edges ? row_of(a.rowptr, a.rows, begin) : 0;
#pragma unroll 1
  for (int n = 0; n < kEdgesPerGroup; ++n) {
    const int64_t p = begin + n;
    const bool live = p < edges;
    A sum = 0;
    int32_t c = 0;
    if (live) {
      while (p >= a.rowptr[row + 1]) ++row;
      c = a.col[p];
#pragma unroll 2
      for (int64_t k = int64_t(lane) * kVec; k < d; k += kLanes * kVec) {
        const Pack<T, kVec> u = load<T, kVec>(g + row * d + k), v = load<T, kVec>(x + c * d + k);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum += widen(u.v[i]) * widen(v.v[i]);
      }
    }
    sum = sum_of_lanes<kLanes>(sum);
    if (live && lane == 0) {
      A scale = a.row_scale == nullptr ? A(1) : a.row_scale[row];
      if (a.col_scale != nullptr) scale *= a.col_scale[c];
      out[a.edge == nullptr ? p : a.edge[p]] = scale * sum;
    } else if (lane == 0 && p < a.nnz) {
      out[a.edge == nullptr ? p : a.edge[p]] = 0;
    }
  }
}

template <class T, class A>
cudaError_t value_grad(const SparseArgs<A>& a, const T* g, const T* x, A* out, int64_t d,
                       cudaStream_t stream) {
  if (a.nnz == 0) return cudaSuccess;
  const int64_t groups = ceil_div(a.nnz, kEdgesPerGroup);
  choose<T>(layout_of<T>(d, is_aligned(x) && is_aligned(g)), [&](auto vec, auto lanes) {
    constexpr int kVec = decltype(vec)::value, kLanes = decltype(lanes)::value;
    MMSSL_LAUNCH((value_grad_kernel<T, A, kVec, kLanes>), num_blocks(groups * kLanes), kBlock, stream,
                 a, g, x, out, d);
  });
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x,
                                   float* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x,
                                   float* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}
cudaError_t launch_spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x,
                                   double* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}

}  // namespace mmssl::cuda
