// A thread per element of the rows, a warp per row where a row is summed, a block for a few columns where
// these are, and one block for the terms of the loss. All sums have a fixed order.
#include "ops/critic/kernels.cuh"

#include <cfloat>
#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr int kLastColumns = 8;

// As torch.lerp forms it.
template <class A>
__device__ __forceinline__ A between(A from, A to, A share) {
  return share < A(0.5) ? from + share * (to - from) : to - (to - from) * (1 - share);
}

// A thread per element of the fake rows, which has the real and the mixed one at hand.
template <class T, class A>
__global__ void __launch_bounds__(kBlock) grouped_kernel(const __grid_constant__ GroupedRows<T, A> a) {
  const int64_t at = global_thread(), size = a.rows * a.columns;
  if (at >= size) return;
  const int64_t row = at / a.columns, column = at - row * a.columns;
  const A shift = a.bias[column], fake = A(widen(a.pre[at])) + shift;
  narrow(fake, a.out[at]);
  if (a.groups < 2) return;
  const A real = A(widen(a.pre[size + row % a.batch * a.columns + column])) + shift;
  narrow(real, a.out[size + at]);
  if (a.groups == 3) narrow(between(fake, real, a.alpha[row]), a.out[2 * size + at]);
}

// A thread per element of the real rows, which adds up the copies of it.
template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    ungrouped_kernel(const __grid_constant__ UngroupedRows<T, A> a) {
  const int64_t of = global_thread(), size = a.rows * a.columns, step = a.batch * a.columns;
  if (of >= step) return;
  A sum = 0;
  for (int64_t at = of; at < size; at += step) {
    A fake = widen(a.grad[at]), real = widen(a.grad[size + at]);
    if (a.groups == 3) {
      const A share = a.alpha[at / a.columns], mixed = widen(a.grad[2 * size + at]);
      fake += (1 - share) * mixed, real += share * mixed;
    }
    narrow(fake, a.out[at]);
    sum += real;
  }
  narrow(sum, a.out[size + of]);
}

// A warp per row.
template <class T, class A>
__global__ void __launch_bounds__(kBlock) scores_kernel(const __grid_constant__ Scores<T, A> a) {
  const int64_t row = global_thread() / kWarp;
  if (row >= a.count) return;
  const T* __restrict__ y = a.y + row * a.columns;
  const int lane = int(threadIdx.x % kWarp);
  A logit = 0;
#pragma unroll 4
  for (int64_t c = lane; c < a.columns; c += kWarp) logit += A(widen(y[c])) * a.weight[c];
  logit = sum_of_lanes(logit) + *a.bias;
  const A share = 1 / (1 + exp(-logit)), slope = A(kScoreScale) * share * (1 - share);
  if (lane == 0) a.share[row] = share, a.slope[row] = slope;
  const int64_t to = row - (a.count - a.last);
  if (to < 0) return;
  for (int64_t c = lane; c < a.columns; c += kWarp) {
    narrow(slope * a.weight[c], a.to_y[to * a.columns + c]);
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kBlock) norms_kernel(const __grid_constant__ RowNorms<T, A> a) {
  const int64_t row = global_thread() / kWarp;
  if (row >= a.rows) return;
  const T* __restrict__ image = a.image + row * a.columns;
  const T* __restrict__ other = a.other + row * a.columns;
  A sum = 0;
#pragma unroll 4
  for (int64_t c = threadIdx.x % kWarp; c < a.columns; c += kWarp) {
    sum += A(widen(image[c])) * A(widen(other[c]));
  }
  sum = sum_of_lanes(sum);
  if (threadIdx.x % kWarp != 0) return;
  constexpr A kSmallest = sizeof(A) == 8 ? A(DBL_MIN) : A(FLT_MIN);
  const bool above = sum >= kSmallest;
  const A norm = sqrt(above ? sum : kSmallest);
  a.norm[row] = norm;
  // Twice d/dsquare of kPenaltyScale / n * (norm - 1)^2.
  a.factor[row] = above ? A(2 * kPenaltyScale) / A(a.rows) * (1 - 1 / norm) : A(0);
}

template <class A>
__global__ void __launch_bounds__(kBlock) terms_kernel(const __grid_constant__ LossTerms<A> a) {
  constexpr int kSums = 3;
  __shared__ double sums[kSums][kBlock / kWarp];
  double own[kSums] = {};
  for (int64_t row = threadIdx.x; row < a.rows; row += kBlock) {
    own[0] += a.share[row];
    if (a.groups > 1) own[1] += a.share[a.rows + row];
    if (a.norm != nullptr) own[2] += double(a.norm[row] - 1) * double(a.norm[row] - 1);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    own[k] = sum_of_lanes(own[k]);
    if (threadIdx.x % kWarp == 0) sums[k][threadIdx.x / kWarp] = own[k];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total[kSums] = {};
  for (int k = 0; k < kSums; ++k) {
    for (int w = 0; w < kBlock / kWarp; ++w) total[k] += sums[k][w];
    total[k] *= (k < 2 ? kScoreScale : kPenaltyScale) / double(a.rows);
  }
  total[2] *= a.weight;
  a.out[0] = A(total[0] - total[1] + total[2]);
  for (int k = 0; k < kSums; ++k) a.out[1 + k] = A(total[k]);
}

template <class T, class A>
__global__ void __launch_bounds__(kBlock) scaled_kernel(const __grid_constant__ ScaledRows<T, A> a) {
  const int64_t at = global_thread();
  if (at >= a.rows * a.columns) return;
  const A factor = *a.grad * a.weight * a.factor[at / a.columns];
  narrow(factor * A(widen(a.first[at])), a.out_first[at]);
  if (a.second != nullptr) narrow(factor * A(widen(a.second[at])), a.out_second[at]);
}

// A warp per row.
template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    logit_kernel(const __grid_constant__ LogitGradient<T, A> a) {
  const int64_t row = global_thread() / kWarp;
  if (row >= a.groups * a.rows) return;
  const int lane = int(threadIdx.x % kWarp);
  A up = row < a.rows ? *a.grad / A(a.rows) : -*a.grad / A(a.rows);
  if (row >= 2 * a.rows) {
    const T* __restrict__ of = a.up + (row - 2 * a.rows) * a.columns;
    up = 0;
#pragma unroll 4
    for (int64_t c = lane; c < a.columns; c += kWarp) up += A(widen(of[c])) * a.weight[c];
    up = sum_of_lanes(up) * (1 - 2 * a.share[row]);
  }
  const A to_logit = up * a.slope[row];
  if (lane == 0) a.to_logit[row] = to_logit;
  for (int64_t c = lane; c < a.columns; c += kWarp) {
    narrow(to_logit * a.weight[c], a.to_y[row * a.columns + c]);
  }
}

// A block for 8 columns of all rows; behind the last column comes the bias.
template <class T, class A>
__global__ void __launch_bounds__(kBlock)
    last_kernel(const __grid_constant__ LastGradient<T, A> a) {
  constexpr int kWarps = kBlock / kWarp, kLines = kBlock / kLastColumns;
  __shared__ double sums[kLastColumns][kWarps];
  const int thread = int(threadIdx.x), lane = thread % kLastColumns;
  const int64_t column = int64_t(blockIdx.x) * kLastColumns + lane;
  double sum = 0;
  if (column <= a.columns) {
    const bool bias = column == a.columns;
#pragma unroll 4
    for (int64_t row = thread / kLastColumns; row < a.groups * a.rows; row += kLines) {
      sum += a.to_logit[row] * (bias ? A(1) : A(widen(a.y[row * a.columns + column])));
    }
    for (int64_t row = thread / kLastColumns; a.up != nullptr && !bias && row < a.rows; row += kLines) {
      sum += a.slope[2 * a.rows + row] * A(widen(a.up[row * a.columns + column]));
    }
  }
#pragma unroll
  for (int mask = kLastColumns; mask < kWarp; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  if (thread % kWarp < kLastColumns) sums[lane][thread / kWarp] = sum;
  __syncthreads();
  if (thread >= kLastColumns || column > a.columns) return;
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[lane][warp];
  *(column == a.columns ? a.to_bias : a.to_weight + column) = A(total);
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), const Args& a, int64_t threads, cudaStream_t stream) {
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH(kernel, num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

}  // namespace

template <class T, class A>
cudaError_t launch_grouped_rows(const GroupedRows<T, A>& a, cudaStream_t stream) {
  return launch(grouped_kernel<T, A>, a, a.rows * a.columns, stream);
}

template <class T, class A>
cudaError_t launch_ungrouped_rows(const UngroupedRows<T, A>& a, cudaStream_t stream) {
  return launch(ungrouped_kernel<T, A>, a, a.batch * a.columns, stream);
}

template <class T, class A>
cudaError_t launch_scores(const Scores<T, A>& a, cudaStream_t stream) {
  return launch(scores_kernel<T, A>, a, a.count * kWarp, stream);
}

template <class T, class A>
cudaError_t launch_row_norms(const RowNorms<T, A>& a, cudaStream_t stream) {
  return launch(norms_kernel<T, A>, a, a.rows * kWarp, stream);
}

template <class A>
cudaError_t launch_loss_terms(const LossTerms<A>& a, cudaStream_t stream) {
  return launch(terms_kernel<A>, a, kBlock, stream);
}

template <class T, class A>
cudaError_t launch_scaled_rows(const ScaledRows<T, A>& a, cudaStream_t stream) {
  return launch(scaled_kernel<T, A>, a, a.rows * a.columns, stream);
}

template <class T, class A>
cudaError_t launch_logit_gradient(const LogitGradient<T, A>& a, cudaStream_t stream) {
  return launch(logit_kernel<T, A>, a, a.groups * a.rows * kWarp, stream);
}

template <class T, class A>
cudaError_t launch_last_gradient(const LastGradient<T, A>& a, cudaStream_t stream) {
  return launch(last_kernel<T, A>, a, ceil_div(a.columns + 1, kLastColumns) * kBlock, stream);
}

#define MMSSL_INSTANTIATE(T, A)                                                          \
  template cudaError_t launch_grouped_rows(const GroupedRows<T, A>&, cudaStream_t);      \
  template cudaError_t launch_ungrouped_rows(const UngroupedRows<T, A>&, cudaStream_t);  \
  template cudaError_t launch_scores(const Scores<T, A>&, cudaStream_t);                 \
  template cudaError_t launch_row_norms(const RowNorms<T, A>&, cudaStream_t);            \
  template cudaError_t launch_scaled_rows(const ScaledRows<T, A>&, cudaStream_t);        \
  template cudaError_t launch_logit_gradient(const LogitGradient<T, A>&, cudaStream_t);  \
  template cudaError_t launch_last_gradient(const LastGradient<T, A>&, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE
template cudaError_t launch_loss_terms(const LossTerms<float>&, cudaStream_t);
template cudaError_t launch_loss_terms(const LossTerms<double>&, cudaStream_t);

}  // namespace mmssl::cuda
