// A thread per element of the rows, a warp per row where a row is summed, and one block for the terms of
// the loss, whose sums have a fixed order.
#include "ops/critic/kernels.cuh"

#include <cfloat>
#include <cmath>

namespace mmssl::cuda {
namespace {

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

template <class T, class A>
__global__ void __launch_bounds__(kBlock) scores_kernel(const __grid_constant__ Scores<T, A> a) {
  const int64_t at = global_thread();
  if (at >= a.count) return;
  const A share = 1 / (1 + exp(-A(widen(a.logit[at]))));
  a.share[at] = share;
  a.slope[at] = A(kScoreScale) * share * (1 - share);
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

template <class A>
__global__ void __launch_bounds__(kBlock) logit_kernel(const __grid_constant__ LogitGradient<A> a) {
  const int64_t at = global_thread();
  if (at >= a.groups * a.rows) return;
  const int64_t group = at / a.rows;
  A up = *a.grad / A(a.rows);
  if (group == 1) up = -up;
  if (group == 2) up = a.to_slope[at - 2 * a.rows] * (1 - 2 * a.share[at]);
  a.out[at] = up * a.slope[at];
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
  return launch(scores_kernel<T, A>, a, a.count, stream);
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

template <class A>
cudaError_t launch_logit_gradient(const LogitGradient<A>& a, cudaStream_t stream) {
  return launch(logit_kernel<A>, a, a.groups * a.rows, stream);
}

#define MMSSL_INSTANTIATE(T, A)                                                          \
  template cudaError_t launch_grouped_rows(const GroupedRows<T, A>&, cudaStream_t);      \
  template cudaError_t launch_ungrouped_rows(const UngroupedRows<T, A>&, cudaStream_t);  \
  template cudaError_t launch_scores(const Scores<T, A>&, cudaStream_t);                 \
  template cudaError_t launch_row_norms(const RowNorms<T, A>&, cudaStream_t);            \
  template cudaError_t launch_scaled_rows(const ScaledRows<T, A>&, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE
template cudaError_t launch_loss_terms(const LossTerms<float>&, cudaStream_t);
template cudaError_t launch_loss_terms(const LossTerms<double>&, cudaStream_t);
template cudaError_t launch_logit_gradient(const LogitGradient<float>&, cudaStream_t);
template cudaError_t launch_logit_gradient(const LogitGradient<double>&, cudaStream_t);

}  // namespace mmssl::cuda
