// Terms: a warp per triple and blocks that sum the squares of the features, in one launch; then one block
// adds everything up in a fixed order. Gradient: a warp per position of the batch; the first one of a row
// looks through the batch for the others, so that nothing is sorted and nothing added atomically.
#include "ops/bpr/batch.cuh"

#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr int64_t kFeatureBlocks = 256;  // of each of both tables

template <class A>
__global__ void __launch_bounds__(kBlock) rows_kernel(const __grid_constant__ BatchRows<A> a) {
  const int64_t at = global_thread();
  if (at >= a.views * a.batch * a.d) return;
  const int64_t k = at % a.d, b = at / a.d % a.batch, m = at / (a.d * a.batch), row = a.users[b];
  a.anchor[at] = a.modality[m * a.view_step + row * a.row_step + k];
  a.positive[at] = a.user[row * a.d + k];
}

// The sum over the block, in its first thread.
template <int kThreads>
__device__ double sum_of_block(double own) {
  __shared__ double sums[kThreads / kWarp];
  own = sum_of_lanes(own);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = own;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kThreads / kWarp; ++w) total += sums[w];
  }
  __syncthreads();  // sums may be overwritten
  return total;
}

// scratch: losses (B), squares (B), sums of the features' squares (2 kFeatureBlocks).
template <class A>
__global__ void __launch_bounds__(kBlock)
    terms_kernel(const __grid_constant__ BatchTerms<A> a, int64_t triple_blocks, double* scratch) {
  const BprArgs<A>& t = a.triples;
  const int64_t block = int64_t(blockIdx.x) - triple_blocks;
  if (block >= 0) {
    const int which = block >= kFeatureBlocks;
    const A* __restrict__ x = a.features[which];
    double sum = 0;
    for (int64_t at = block % kFeatureBlocks * kBlock + threadIdx.x; at < a.feature_counts[which];
         at += kFeatureBlocks * kBlock) {
      sum += double(x[at]) * double(x[at]);
    }
    sum = sum_of_block<kBlock>(sum);
    if (threadIdx.x == 0) scratch[2 * t.batch + block] = sum;
    return;
  }
  const int64_t b = global_thread() / kWarp;
  if (b >= t.batch) return;
  const A* u = t.user_emb + t.user[b] * t.d;
  const A* p = t.item_emb + t.pos[b] * t.d;
  const A* n = t.item_emb + t.neg[b] * t.d;
  A margin = 0, square = 0;
  for (int64_t k = threadIdx.x % kWarp; k < t.d; k += kWarp) {
    margin += u[k] * (p[k] - n[k]);
    square += u[k] * u[k] + p[k] * p[k] + n[k] * n[k];
  }
  margin = sum_of_lanes(margin), square = sum_of_lanes(square);
  if (threadIdx.x % kWarp != 0) return;
  const A e = exp(margin < 0 ? margin : -margin);  // never overflows
  scratch[b] = log1p(e) + (margin < 0 ? -margin : A(0));
  scratch[t.batch + b] = square;
  a.slope[b] = (margin < 0 ? A(1) : e) / (1 + e);
}

template <class A>
__global__ void __launch_bounds__(kBlock)
    total_kernel(const __grid_constant__ BatchTerms<A> a, const double* __restrict__ scratch) {
  const int64_t batch = a.triples.batch;
  double terms[5];
  const auto sum = [&](const auto* x, int64_t count) {
    double own = 0;
    for (int64_t at = threadIdx.x; at < count; at += kBlock) own += x[at];
    return sum_of_block<kBlock>(own);
  };
  terms[0] = sum(scratch, batch) / double(batch);  // NaN for an empty batch, as a mean is
  terms[1] = sum(scratch + batch, batch);
  terms[2] = sum(scratch + 2 * batch, 2 * kFeatureBlocks);
  terms[3] = sum(a.contrast, a.contrast == nullptr ? 0 : a.contrast_count);
  if (threadIdx.x != 0) return;
  terms[4] = a.score == nullptr ? 0 : *a.score;
  double loss = 0;
  for (int k = 0; k < 5; ++k) {
    terms[k] *= double(a.weights[k]);
    loss += terms[k], a.out[1 + k] = A(terms[k]);
  }
  a.out[0] = A(loss);
}

// The ids of a side: of all users, or of the positive items followed by the negative ones.
template <class A>
struct Ids {
  const BprArgs<A>& t;
  bool items;
  __device__ int64_t count() const { return items ? 2 * t.batch : t.batch; }
  __device__ int64_t operator[](int64_t at) const {
    return !items ? t.user[at] : at < t.batch ? t.pos[at] : t.neg[at - t.batch];
  }
  // The positions of a row among 32 of them, as bits.
  __device__ unsigned matches(int64_t first, int64_t row) const {
    const int64_t at = first + threadIdx.x % kWarp;
    return __ballot_sync(kAllLanes, at < count() && (*this)[at] == row);
  }
};

// Warps [0, B) take the users, [B, 3 B) the items, then B for each modality.
template <class A>
__global__ void __launch_bounds__(kBlock)
    gradient_kernel(const __grid_constant__ BatchGradient<A> a) {
  const BprArgs<A>& t = a.triples;
  const int64_t warp = global_thread() / kWarp, views = a.to_anchor == nullptr ? 0 : a.views;
  if (warp >= (3 + views) * t.batch) return;
  const bool items = warp >= t.batch && warp < 3 * t.batch;
  const int64_t view = warp < 3 * t.batch ? -1 : warp / t.batch - 3;
  const int64_t position = items ? warp - t.batch : warp % t.batch;
  const Ids<A> ids{t, items};
  const int64_t row = ids[position], first = position / kWarp * kWarp;
  for (int64_t at = 0; at <= first; at += kWarp) {
    const unsigned before = at < first ? kAllLanes : (1u << (position - first)) - 1;
    if ((ids.matches(at, row) & before) != 0) return;  // another warp takes this row
  }
  const A scale = -a.scaled[0] / A(t.batch), decay = 2 * a.scaled[1];
  const int64_t size = t.batch * t.d;
  const int64_t before = view >= 0 ? t.users + t.items + view * t.users : items ? t.users : 0;
  A* to = a.out + (before + row) * t.d;
  for (int64_t begin = 0; begin < t.d; begin += kWarp) {
    const int64_t k = begin + threadIdx.x % kWarp;
    const bool live = k < t.d;
    A sum = 0;
    for (int64_t at = first; at < ids.count(); at += kWarp) {
      for (unsigned bits = ids.matches(at, row); bits != 0; bits &= bits - 1) {
        const int64_t p = at + __ffs(int(bits)) - 1, b = items && p >= t.batch ? p - t.batch : p;
        if (!live) continue;
        if (view >= 0) {
          sum += a.to_anchor[view * size + b * t.d + k];
          continue;
        }
        const A pos = t.item_emb[t.pos[b] * t.d + k], neg = t.item_emb[t.neg[b] * t.d + k];
        const A user = t.user_emb[t.user[b] * t.d + k], weight = scale * a.slope[b];
        if (items) {
          sum += p < t.batch ? weight * user + decay * pos : decay * neg - weight * user;
        } else {
          sum += weight * (pos - neg) + decay * user;
          for (int64_t m = 0; m < (a.to_positive == nullptr ? 0 : a.views); ++m) {
            sum += a.to_positive[m * size + b * t.d + k];
          }
        }
      }
    }
    if (live) to[k] = sum;
  }
}

int64_t triple_blocks(int64_t batch) { return num_blocks(batch * kWarp); }

}  // namespace

int64_t batch_scratch(int64_t batch) { return 2 * (batch + kFeatureBlocks); }

template <class A>
cudaError_t launch_batch_rows(const BatchRows<A>& a, cudaStream_t stream) {
  const int64_t threads = a.views * a.batch * a.d;
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH((rows_kernel<A>), num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_batch_terms(const BatchTerms<A>& a, double* scratch, cudaStream_t stream) {
  const int64_t triples = triple_blocks(a.triples.batch);
  MMSSL_LAUNCH((terms_kernel<A>), unsigned(triples + 2 * kFeatureBlocks), kBlock, stream, a, triples,
               scratch);
  MMSSL_LAUNCH((total_kernel<A>), 1u, kBlock, stream, a, scratch);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_batch_gradient(const BatchGradient<A>& a, cudaStream_t stream) {
  const BprArgs<A>& t = a.triples;
  const int64_t views = a.to_anchor == nullptr ? 0 : a.views;
  const int64_t rows = t.users + t.items + views * t.users;
  const cudaError_t cleared = cudaMemsetAsync(a.out, 0, rows * t.d * sizeof(A), stream);
  if (cleared != cudaSuccess) return cleared;
  const int64_t threads = (3 + views) * t.batch * kWarp;
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH((gradient_kernel<A>), num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(A)                                                         \
  template cudaError_t launch_batch_rows(const BatchRows<A>&, cudaStream_t);         \
  template cudaError_t launch_batch_terms(const BatchTerms<A>&, double*, cudaStream_t); \
  template cudaError_t launch_batch_gradient(const BatchGradient<A>&, cudaStream_t);
MMSSL_INSTANTIATE(float)
MMSSL_INSTANTIATE(double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
