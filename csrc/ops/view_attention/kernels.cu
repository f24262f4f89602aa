// A warp per node. Its scores and weights live in shared memory; the rows of a node are small enough
// that those read again come from the first-level cache. Dot products take four lanes each.
#include "ops/view_attention/kernels.cuh"

#include <algorithm>
#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr int kGroup = 4;  // lanes of a dot product

template <class A>
struct Scores {
  A* share;        // (H, M, M): p, which the gradients of the scores follow
  A* weight;       // (H, M)
  A* grad_weight;  // (H, M)
};

// out[i] = <a(i), b(i)> over d features for i in [0, count); a whole warp. Indices within a node are
// of 32 bits, whose divisions take a fraction of the time.
template <class T, class A, class Left, class Right>
__device__ __forceinline__ void dots(int count, int d, A* out, const Left& left,
                                     const Right& right) {
  const int lane = threadIdx.x % kWarp;
  for (int begin = 0; begin < count; begin += kWarp / kGroup) {
    const int i = begin + lane / kGroup;
    A sum = 0;
    if (i < count) {
      const T *a = left(i), *b = right(i);
#pragma unroll 4
      for (int k = lane % kGroup; k < d; k += kGroup) sum += A(widen(a[k])) * A(widen(b[k]));
    }
    sum = sum_of_lanes<kGroup>(sum);
    if (i < count && lane % kGroup == 0) out[i] = sum;
  }
  __syncwarp();
}

// share and weight of a node; a whole warp. The pointers are those of its first view.
template <class T, class A>
__device__ __forceinline__ void weigh(const ViewAttentionSize& size, const Scores<A>& s,
                                      const T* query, const T* key) {
  const int64_t step = size.nodes * size.dim;
  const int m = int(size.views), heads = int(size.heads), width = int(size.dim) / heads;
  const int lane = threadIdx.x % kWarp;
  dots<T>(
      heads * m * m, width, s.share,
      [&](int i) { return query + i / m % m * step + i / (m * m) * width; },
      [&](int i) { return key + i % m * step + i / (m * m) * width; });
  const A scale = 1 / std::sqrt(A(width));
  for (int row = lane; row < heads * m; row += kWarp) {
    A* p = s.share + row * m;
    A most = p[0], sum = 0;
    for (int b = 1; b < m; ++b) most = p[b] > most ? p[b] : most;
    for (int b = 0; b < m; ++b) sum += p[b] = std::exp(scale * (p[b] - most));
    for (int b = 0; b < m; ++b) p[b] /= sum;
  }
  __syncwarp();
  for (int i = lane; i < heads * m; i += kWarp) {
    A sum = 0;
    for (int a = 0; a < m; ++a) sum += s.share[(i / m * m + a) * m + i % m];
    s.weight[i] = sum / A(m);
  }
  __syncwarp();
}

template <class A>
__device__ __forceinline__ Scores<A> scores_of_warp(const ViewAttentionSize& size, char* base) {
  const int64_t pairs = size.heads * size.views;
  A* first = reinterpret_cast<A*>(base) + threadIdx.x / kWarp * pairs * (size.views + 2);
  return {first, first + pairs * size.views, first + pairs * (size.views + 1)};
}

template <class T, class A>
__global__ void forward_kernel(ViewAttentionSize size, int warps, const T* __restrict__ query,
                               const T* __restrict__ key, const T* __restrict__ view,
                               T* __restrict__ out) {
  MMSSL_DYNAMIC_SHARED(base);
  const int64_t node = int64_t(blockIdx.x) * warps + threadIdx.x / kWarp;
  if (node >= size.nodes) return;  // a whole warp
  const Scores<A> s = scores_of_warp<A>(size, base);
  const int m = int(size.views), d = int(size.dim), heads = int(size.heads);
  const int64_t step = size.nodes * d, at = node * d;
  weigh(size, s, query + at, key + at);
  for (int k = threadIdx.x % kWarp; k < heads * d; k += kWarp) {
    const int head = k / d;
    const int64_t feature = at + k % d;
    A sum = 0;
    for (int b = 0; b < m; ++b) sum += s.weight[head * m + b] * widen(view[b * step + feature]);
    narrow(sum, out[node * heads * d + k]);
  }
}

template <class T, class A>
__global__ void backward_kernel(ViewAttentionSize size, int warps, const T* __restrict__ grad,
                                const T* __restrict__ query, const T* __restrict__ key,
                                const T* __restrict__ view, T* __restrict__ grad_query,
                                T* __restrict__ grad_key, T* __restrict__ grad_view) {
  MMSSL_DYNAMIC_SHARED(base);
  const int64_t node = int64_t(blockIdx.x) * warps + threadIdx.x / kWarp;
  if (node >= size.nodes) return;
  const Scores<A> s = scores_of_warp<A>(size, base);
  const int m = int(size.views), d = int(size.dim), heads = int(size.heads), width = d / heads;
  const int64_t step = size.nodes * d, at = node * d;
  const int lane = threadIdx.x % kWarp;
  const T* g = grad + at * heads;
  weigh(size, s, query + at, key + at);
  dots<T>(
      heads * m, d, s.grad_weight, [&](int i) { return g + i / m * d; },
      [&](int i) { return view + i % m * step + at; });
  const A scale = 1 / (std::sqrt(A(width)) * A(m));
  for (int row = lane; row < heads * m; row += kWarp) {  // the gradients of the scores
    A* p = s.share + row * m;
    const A* to = s.grad_weight + row / m * m;
    A mean = 0;
    for (int b = 0; b < m; ++b) mean += p[b] * to[b];
    for (int b = 0; b < m; ++b) p[b] = scale * p[b] * (to[b] - mean);
  }
  __syncwarp();
  for (int n = lane; n < m * d; n += kWarp) {
    const int a = n / d, k = n % d, head = k / width;
    const int64_t to = a * step + at + k;
    const A* p = s.share + head * m * m;
    A to_query = 0, to_key = 0, to_view = 0;
    for (int b = 0; b < m; ++b) {
      to_query += p[a * m + b] * widen(key[b * step + at + k]);
      to_key += p[b * m + a] * widen(query[b * step + at + k]);
    }
    for (int h = 0; h < heads; ++h) to_view += s.weight[h * m + a] * widen(g[h * d + k]);
    narrow(to_query, grad_query[to]);
    narrow(to_key, grad_key[to]);
    narrow(to_view, grad_view[to]);
  }
}

// As many warps as their shared memory allows, so that a block stays below 48 KiB where it can.
template <class A>
int warps_of(const ViewAttentionSize& size) {
  const int64_t bytes = view_attention_numbers(size) * int64_t(sizeof(A));
  return int(std::clamp<int64_t>((48 << 10) / std::max<int64_t>(bytes, 1), 1, kBlock / kWarp));
}

}  // namespace

template <class T, class A>
cudaError_t launch_view_attention(const ViewAttentionSize& size, const T* query, const T* key,
                                  const T* view, T* out, cudaStream_t stream) {
  if (size.nodes * size.dim == 0) return cudaSuccess;
  const int warps = warps_of<A>(size);
  const size_t bytes = size_t(warps) * view_attention_numbers(size) * sizeof(A);
  MMSSL_LAUNCH_SHARED((forward_kernel<T, A>), unsigned(ceil_div(size.nodes, warps)), warps * kWarp,
                      bytes, stream, size, warps, query, key, view, out);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t launch_view_attention_backward(const ViewAttentionSize& size, const T* grad,
                                           const T* query, const T* key, const T* view,
                                           T* grad_query, T* grad_key, T* grad_view,
                                           cudaStream_t stream) {
  if (size.nodes * size.dim == 0) return cudaSuccess;
  const int warps = warps_of<A>(size);
  const size_t bytes = size_t(warps) * view_attention_numbers(size) * sizeof(A);
  MMSSL_LAUNCH_SHARED((backward_kernel<T, A>), unsigned(ceil_div(size.nodes, warps)), warps * kWarp,
                      bytes, stream, size, warps, grad, query, key, view, grad_query, grad_key,
                      grad_view);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T, A)                                                                   \
  template cudaError_t launch_view_attention<T, A>(const ViewAttentionSize&, const T*, const T*,  \
                                                   const T*, T*, cudaStream_t);                   \
  template cudaError_t launch_view_attention_backward<T, A>(const ViewAttentionSize&, const T*,   \
                                                            const T*, const T*, const T*, T*, T*, \
                                                            T*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
