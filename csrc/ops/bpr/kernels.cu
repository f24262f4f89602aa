// Forward: a warp per triple, then one block that adds the terms in a fixed order. Backward: the
// positions of the batch come sorted by row; the warp at the first position of a row visits the
// others and writes the row, so that nothing is added atomically. Rows outside the batch are
// cleared first.
#include "ops/bpr/kernels.cuh"

#include <cmath>

namespace mmssl::cuda {
namespace {

template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    triple_kernel(BprArgs<T> a, A* __restrict__ loss, A* __restrict__ squares,
                  A* __restrict__ slope) {
  const int64_t b = global_thread() / kWarp;
  if (b >= a.batch) return;  // a whole warp
  const T* u = a.user_emb + a.user[b] * a.d;
  const T* p = a.item_emb + a.pos[b] * a.d;
  const T* n = a.item_emb + a.neg[b] * a.d;
  A margin = 0, square = 0;
  for (int64_t k = threadIdx.x % kWarp; k < a.d; k += kWarp) {
    const A user = widen(u[k]), pos = widen(p[k]), neg = widen(n[k]);
    margin += user * (pos - neg);
    square += user * user + pos * pos + neg * neg;
  }
  margin = sum_of_lanes(margin);
  square = sum_of_lanes(square);
  if (threadIdx.x % kWarp != 0) return;
  // The exponential never overflows, and log1p keeps its precision.
  const A e = std::exp(margin < 0 ? margin : -margin);
  loss[b] = std::log1p(e) + (margin < 0 ? -margin : A(0));
  squares[b] = square;
  slope[b] = (margin < 0 ? A(1) : e) / (1 + e);
}

// One block. terms (2, batch): the losses, then the squares.
template <class A>
__global__ void __launch_bounds__(kBlock)
    sum_kernel(const A* __restrict__ terms, int64_t batch, A* __restrict__ loss,
               A* __restrict__ squares) {
  __shared__ double sums[2][kBlock];
  double own[2] = {0, 0};
  for (int64_t b = threadIdx.x; b < batch; b += kBlock) {
    own[0] += terms[b];
    own[1] += terms[batch + b];
  }
  sums[0][threadIdx.x] = own[0];
  sums[1][threadIdx.x] = own[1];
  __syncthreads();
  for (int width = kBlock / 2; width > 0; width /= 2) {
    if (threadIdx.x < unsigned(width)) {
      sums[0][threadIdx.x] += sums[0][threadIdx.x + width];
      sums[1][threadIdx.x] += sums[1][threadIdx.x + width];
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  *loss = A(sums[0][0] / double(batch));  // NaN for an empty batch, as a mean is
  *squares = A(sums[1][0]);
}

// The item at a position: the positives come first, then the negatives.
template <class T>
__device__ __forceinline__ int64_t item_at(const BprArgs<T>& a, int64_t position) {
  return position < a.batch ? a.pos[position] : a.neg[position - a.batch];
}

// Warps [0, B) take the sorted users, warps [B, 3 B) the sorted items.
template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    scatter_kernel(BprArgs<T> a, const A* __restrict__ grad_loss,
                   const A* __restrict__ grad_squares, const A* __restrict__ slope,
                   const int64_t* __restrict__ user_order, const int64_t* __restrict__ item_order,
                   T* __restrict__ grad_user, T* __restrict__ grad_item) {
  const int64_t warp = global_thread() / kWarp;
  if (warp >= 3 * a.batch) return;
  const bool items = warp >= a.batch;
  const int64_t* order = items ? item_order : user_order;
  const int64_t first = items ? warp - a.batch : warp, positions = items ? 2 * a.batch : a.batch;
  const auto row_at = [&](int64_t i) { return items ? item_at(a, order[i]) : a.user[order[i]]; };
  const int64_t row = row_at(first);
  if (first > 0 && row_at(first - 1) == row) return;
  int64_t end = first + 1;
  while (end < positions && row_at(end) == row) ++end;
  const A scale = -*grad_loss / A(a.batch), decay = 2 * *grad_squares * A(end - first);
  for (int64_t k = threadIdx.x % kWarp; k < a.d; k += kWarp) {
    A sum = 0;
    for (int64_t i = first; i < end; ++i) {
      const int64_t position = order[i];
      if (items) {
        const int64_t b = position < a.batch ? position : position - a.batch;
        const A weight = scale * slope[b];
        sum += (position < a.batch ? weight : -weight) * widen(a.user_emb[a.user[b] * a.d + k]);
      } else {
        const A pos = widen(a.item_emb[a.pos[position] * a.d + k]);
        sum += scale * slope[position] * (pos - widen(a.item_emb[a.neg[position] * a.d + k]));
      }
    }
    const T own = (items ? a.item_emb : a.user_emb)[row * a.d + k];
    if (decay != 0) sum += decay * widen(own);
    narrow(sum, (items ? grad_item : grad_user)[row * a.d + k]);
  }
}

}  // namespace

template <class T, class A>
cudaError_t launch_bpr(const BprArgs<T>& a, A* loss, A* squares, A* slope, A* scratch,
                       cudaStream_t stream) {
  if (a.batch > 0) {
    MMSSL_LAUNCH((triple_kernel<T, A>), num_blocks(a.batch * kWarp), kBlock, stream, a, scratch,
                 scratch + a.batch, slope);
  }
  MMSSL_LAUNCH((sum_kernel<A>), 1, kBlock, stream, scratch, a.batch, loss, squares);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t launch_bpr_backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares,
                                const A* slope, const int64_t* user_order,
                                const int64_t* item_order, T* grad_user, T* grad_item,
                                cudaStream_t stream) {
  const cudaError_t cleared = cudaMemsetAsync(grad_user, 0, a.users * a.d * sizeof(T), stream);
  if (cleared != cudaSuccess) return cleared;
  const cudaError_t both = cudaMemsetAsync(grad_item, 0, a.items * a.d * sizeof(T), stream);
  if (both != cudaSuccess || a.batch == 0) return both;
  MMSSL_LAUNCH((scatter_kernel<T, A>), num_blocks(3 * a.batch * kWarp), kBlock, stream, a, grad_loss,
               grad_squares, slope, user_order, item_order, grad_user, grad_item);
  return cudaGetLastError();
}

#define MMSSL_BPR(T, A)                                                                       \
  template cudaError_t launch_bpr<T, A>(const BprArgs<T>&, A*, A*, A*, A*, cudaStream_t);     \
  template cudaError_t launch_bpr_backward<T, A>(const BprArgs<T>&, const A*, const A*,       \
                                                 const A*, const int64_t*, const int64_t*, T*, \
                                                 T*, cudaStream_t);
MMSSL_BPR(float, float)
MMSSL_BPR(bf16, float)
MMSSL_BPR(double, double)
#undef MMSSL_BPR

}  // namespace mmssl::cuda
