// The kernels of info_nce that take O(N D): norms, losses, weights, the way back through the
// normalization. Included by kernels.cu only.
#pragma once
#include "ops/info_nce/kernels.cuh"

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda {
namespace {

// A warp per row of all sets: its norm, and the row scaled by it.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) prepare_kernel(Problem<T, A> p) {
  int64_t row = global_thread<kThreads>() / kWarp;
  const int64_t d = p.shape.d;
  const int set = p.set_of_row(row);
  if (set == kSets) return;
  const T* x = p.x[set] + row * d;
  double sum = 0;
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    const double v = widen(x[k]);
    sum += v * v;
  }
  double norm = sqrt(sum_of_lanes(sum));
  norm = norm < 1e-12 ? 1e-12 : norm;
  double by = norm, inverse = 1;
  if (sizeof(T) == 2) {
    int exponent;
    const double fraction = frexp(norm, &exponent);
    by = ldexp(1.0, exponent - 1);
    inverse = 0.5 / fraction;
  }
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    narrow(A(A(widen(x[k])) / A(by)), p.z[set][row * d + k]);
  }
  if (threadIdx.x % kWarp == 0) p.inverse[set][row] = A(inverse), p.norm[set][row] = A(norm);
}

// A warp per row: the positive, the parts of the sum in order, the loss.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    loss_kernel(Problem<T, A> p, A* loss, double* saved) {
  const int64_t row = global_thread<kThreads>() / kWarp, d = p.shape.d;
  const int64_t rows = p.rows(0);
  if (row >= rows) return;
  if (p.is_padding(0, row)) {
    if (threadIdx.x % kWarp == 0) loss[row] = A(0);
    for (int n = threadIdx.x % kWarp; n <= p.directions(); n += kWarp) saved[n * rows + row] = 0;
    return;
  }
  const int64_t y = p.positive_of(row);
  double dot = 0;
  for (int64_t k = threadIdx.x % kWarp; y >= 0 && k < d; k += kWarp) {
    dot += double(widen(p.z[0][row * d + k])) * double(widen(p.z[1][y * d + k]));
  }
  dot = sum_of_lanes(dot);
  if (threadIdx.x % kWarp != 0) return;
  const double s = y < 0 ? 0 : dot * double(p.inverse[0][row]) * double(p.inverse[1][y]);
  const double t = double(*p.temperature), positive = y < 0 ? -INFINITY : s * kLog2E / t;
  double total = 0;
  for (int direction = 0; direction < p.directions(); ++direction) {
    double most = positive, sum = 0;
    for (int split = 0; split < p.splits; ++split) {
      const double m = p.part_max[(int64_t(split) * p.directions() + direction) * rows + row];
      most = m > most ? m : most;
    }
    for (int split = 0; split < p.splits; ++split) {
      const int64_t at = (int64_t(split) * p.directions() + direction) * rows + row;
      if (p.part_sum[at] != A(0)) sum += double(p.part_sum[at]) * exp2(p.part_max[at] - most);
    }
    if (y >= 0) sum += exp2(positive - most);
    const double lse = kLn2 * (most + log2(sum));  // -inf where there is no term at all
    saved[direction * rows + row] = lse;
    const double log_ratio = s / t - lse;
    total -= p.shape.eps > 0 ? log(exp(log_ratio) + p.shape.eps) : log_ratio;
  }
  saved[p.directions() * rows + row] = s;
  loss[row] = A(total / p.directions());
}

// Row weights w_i = -dL/d(log ratio), and the gradient of s12_iy. Sets without anchors have weight
// 0.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    weight_kernel(Problem<T, A> p, const A* grad, const double* saved) {
  const int64_t row = global_thread<kThreads>(), rows = p.rows(0);
  const Range<A> range{double(*p.temperature)};
  const A range_scale = A(range.scale), range_shift = A(range.shift);
  if (row < p.rows(2)) p.weight[2][row] = A(0), p.shift[2][row] = range_scale;
  if (row < p.rows(1) && !p.shape.symmetric) p.weight[1][row] = A(0), p.shift[1][row] = range_scale;
  if (row >= rows) return;
  double diagonal = 0;
  for (int direction = 0; direction < p.directions(); ++direction) {
    const double lse = saved[direction * rows + row];
    const double ratio = exp(saved[p.directions() * rows + row] / double(*p.temperature) - lse);
    const double w = double(grad[row]) / p.directions() *
                     (p.shape.eps > 0 ? ratio / (ratio + p.shape.eps) : 1.0);
    p.weight[direction][row] = A(range.fixed ? w * exp2(-double(range_shift) - lse * kLog2E) : w);
    p.shift[direction][row] = A(lse * kLog2E);
    diagonal += w * (ratio - 1);
  }
  p.diagonal[row] = p.positive_of(row) < 0 ? A(0) : A(diagonal);
}

// Lists the anchors of each positive in ascending order: a warp per anchor finds the next one. The
// first ones were set to a number that is larger than all.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) anchors_kernel(Problem<T, A> p) {
  const int64_t row = global_thread<kThreads>() / kWarp;
  if (row >= p.rows(0)) return;
  const int64_t y = p.target[row], end = (row / p.shape.n + 1) * p.shape.n;
  const int lane = threadIdx.x % kWarp;
  int next = -1;
  for (int64_t first = row + 1; first < end && y >= 0; first += kWarp) {
    const int64_t other = first + lane;
    const unsigned equal = __ballot_sync(kAllLanes, other < end && p.target[other] == y);
    if (equal == 0) continue;
    next = int(first) + __ffs(int(equal)) - 1;
    break;
  }
  if (lane != 0) return;
  p.next_anchor[row] = next;
  if (y >= 0) atomicMin(p.first_anchor + p.positive_of(row), int(row));
}

// A warp per positive: adds what its anchors give it beyond the other terms, in their order.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) positives_kernel(Problem<T, A> p) {
  const int64_t y = global_thread<kThreads>() / kWarp, d = p.shape.d;
  if (y >= p.rows(1)) return;
  int row = p.first_anchor[y];
  if (row >= p.rows(0)) return;
  for (; row >= 0; row = p.next_anchor[row]) {
    const A weight = p.diagonal[row] * p.inverse[0][row];
    for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
      p.parts(1, 0)[y * d + k] += weight * A(widen(p.z[0][row * d + k]));
    }
  }
}

template <class T>
struct Gradients {
  T* of[kSets];
};

// A warp per row: the parts in order, the positive's share, and back through the normalization.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    finish_kernel(Problem<T, A> p, Gradients<T> gradients) {
  const int64_t of_all = global_thread<kThreads>() / kWarp, d = p.shape.d;
  int64_t row = of_all;
  const int set = p.set_of_row(row);
  if (set == kSets) return;
  T* const out = gradients.of[set];
  if (p.is_padding(set, row)) {
    for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) out[row * d + k] = T{};
    if (threadIdx.x % kWarp == 0) p.dots[of_all] = 0;
    return;
  }
  const A own = p.inverse[set][row], norm = p.norm[set][row];
  // With target, positives_kernel has added the share of its anchors to a positive.
  const int64_t y = set == 0 ? p.positive_of(row) : set == 1 && p.target == nullptr ? row : -1;
  const A positive = y >= 0 ? p.diagonal[row] * p.inverse[1 - set][y] : A(0);
  const auto gradient = [&](int64_t k) {
    A g = y >= 0 ? positive * A(widen(p.z[1 - set][y * d + k])) : A(0);
    for (int split = 0; split < p.splits; ++split) {
      g += p.parts(set, split)[row * d + k];
    }
    return g;
  };
  double dot = 0;
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    dot += double(widen(p.z[set][row * d + k])) * double(own) * double(gradient(k));
  }
  dot = sum_of_lanes(dot);
  const A along = norm > A(1e-12) ? A(dot) : A(0);
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    const A z = A(widen(p.z[set][row * d + k])) * own;
    narrow(A((gradient(k) - along * z) / norm / *p.temperature), out[row * d + k]);
  }
  if (threadIdx.x % kWarp == 0) p.dots[of_all] = dot;
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) temperature_kernel(Problem<T, A> p, A* out) {
  __shared__ double part[kThreads];
  const int64_t rows = p.rows(0) + p.rows(1) + p.rows(2);
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += p.dots[row];
  part[threadIdx.x] = sum;
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < width) part[threadIdx.x] += part[threadIdx.x + width];
  }
  const double t = double(*p.temperature);
  if (threadIdx.x == 0) *out = A(-0.5 / (t * t) * part[0]);
}

}  // namespace
}  // namespace mmssl::cuda
#endif
