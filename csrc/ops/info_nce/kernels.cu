// Every block owns 64 rows and loops over tiles of columns; nothing of size N x N is kept, and no
// two blocks add to the same number. With few rows the columns are split between blocks as well,
// and a last kernel adds the parts in order.
#include "ops/info_nce/kernels.cuh"

#include <algorithm>
#include <type_traits>

namespace mmssl::cuda {
namespace {

// Sums the exponentials of 64 rows of set `set` (0, or 1 for the second direction).
template <class Product, class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) sum_kernel(Problem<T, A> p, int set) {
  constexpr int kCols = TileShape<T>::kCols, kStride = TileShape<T>::kDepth + TileShape<T>::kPad;
  alignas(16) __shared__ T own[kRows * kStride];
  alignas(16) __shared__ T other[kCols * kStride];
  const Work<T> w = work_of_block(p, set, 1);
  const Range<A> range{double(*p.temperature)};
  const A range_scale = A(range.scale), range_shift = A(range.shift);
  const int lane = threadIdx.x % kWarp;
  const int64_t row[2] = {threadIdx.x / kWarp * 16 + lane / 4, threadIdx.x / kWarp * 16 + lane / 4 + 8};
  const int64_t tile_row = w.first - w.pair * p.shape.n;
  A factor[2], most[2], sum[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    factor[h] = row[h] < w.count ? p.inverse[set][w.first + row[h]] * range_scale : A(0);
    most[h] = range.fixed ? -range_shift : A(-INFINITY);
  }
  for_each_tile<Product>(p, set, w, own, other, [&](A(&score)[kCols / 8][4], int from,
                                                    int64_t first, int64_t count, int64_t index) {
#pragma unroll
    for (int t = 0; t < kCols / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = t * 8 + lane % 4 * 2 + i % 2, h = i / 2;
        const bool out = column >= count || (index >= 0 && index + column == tile_row + row[h]);
        score[t][i] = out ? A(-INFINITY)
                          : score[t][i] * (factor[h] * p.inverse[from][first + column]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!range.fixed) {
        A best = most[h];
#pragma unroll
        for (int t = 0; t < kCols / 8; ++t) {
          best = score[t][2 * h] > best ? score[t][2 * h] : best;
          best = score[t][2 * h + 1] > best ? score[t][2 * h + 1] : best;
        }
        if (best > most[h]) {
          sum[h] *= power_of_two(most[h] - best);
          most[h] = best;
        }
        if (most[h] == A(-INFINITY)) continue;  // no entry yet: -inf - -inf is NaN
      }
#pragma unroll
      for (int t = 0; t < kCols / 8; ++t) {
        sum[h] += power_of_two(score[t][2 * h] - most[h]);
        sum[h] += power_of_two(score[t][2 * h + 1] - most[h]);
      }
    }
  });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int mask = 1; mask <= 2; mask *= 2) {
      const A its_most = __shfl_xor_sync(~0u, most[h], mask);
      const A its_sum = __shfl_xor_sync(~0u, sum[h], mask);
      const A both = its_most > most[h] ? its_most : most[h];
      if (both != A(-INFINITY)) {
        sum[h] = sum[h] * power_of_two(most[h] - both) + its_sum * power_of_two(its_most - both);
      }
      most[h] = both;
    }
    if (lane % 4 == 0 && row[h] < w.count) {
      const int64_t at = (int64_t(w.split) * p.directions() + set) * p.rows(0) + w.first + row[h];
      p.part_max[at] = most[h];
      p.part_sum[at] = sum[h];
    }
  }
}

// A warp per row: the positive, the parts of the sum in order, the loss.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    loss_kernel(Problem<T, A> p, A* loss, double* saved) {
  const int64_t row = global_thread<kThreads>() / kWarp, d = p.shape.d;
  const int64_t rows = p.rows(0);
  if (row >= rows) return;
  double dot = 0;
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    dot += double(widen(p.z[0][row * d + k])) * double(widen(p.z[1][row * d + k]));
  }
  const double s = sum_of_lanes(dot) * double(p.inverse[0][row]) * double(p.inverse[1][row]);
  if (threadIdx.x % kWarp != 0) return;
  const double t = double(*p.temperature), positive = s * kLog2E / t;
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
    const double lse = kLn2 * (most + log2(sum + exp2(positive - most)));
    saved[direction * rows + row] = lse;
    const double log_ratio = s / t - lse;
    total -= p.shape.eps > 0 ? log(exp(log_ratio) + p.shape.eps) : log_ratio;
  }
  saved[p.directions() * rows + row] = s;
  loss[row] = A(total / p.directions());
}

// Row weights w_i = -dL/d(log ratio), and the gradient of s12_ii. Sets without anchors have weight
// 0.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    weight_kernel(Problem<T, A> p, const A* grad, const double* saved) {
  const int64_t row = global_thread<kThreads>(), rows = p.rows(0);
  const Range<A> range{double(*p.temperature)};
  const A range_scale = A(range.scale), range_shift = A(range.shift);
  if (row < p.rows(2)) p.weight[2][row] = A(0), p.shift[2][row] = range_scale;
  if (row >= rows) return;
  p.weight[1][row] = A(0), p.shift[1][row] = range_scale;
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
  p.diagonal[row] = A(diagonal);
}

// Gradients of 64 normalized rows, one chunk of features: sum_j g_ij z_j over the block's columns.
template <class Product, class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) grad_kernel(Problem<T, A> p, int set) {
  constexpr int kCols = TileShape<T>::kCols, kDepth = TileShape<T>::kDepth;
  constexpr int kStride = kDepth + TileShape<T>::kPad, kWeightStride = kCols + TileShape<T>::kPad;
  alignas(16) __shared__ T own[kRows * kStride];
  alignas(16) __shared__ T other[kCols * kStride];
  alignas(16) __shared__ T weights[kRows * kWeightStride];
  const int64_t d = p.shape.d;
  const Work<T> w = work_of_block(p, set, int(ceil_div(d, kDepth)));
  const Range<A> range{double(*p.temperature)};
  const A range_scale = A(range.scale), range_shift = A(range.shift);
  const int lane = threadIdx.x % kWarp;
  const int64_t row[2] = {threadIdx.x / kWarp * 16 + lane / 4, threadIdx.x / kWarp * 16 + lane / 4 + 8};
  const int64_t tile_row = w.first - w.pair * p.shape.n;
  A inverse[2] = {}, weight[2] = {}, shift[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row[h] >= w.count) continue;
    inverse[h] = p.inverse[set][w.first + row[h]];
    weight[h] = p.weight[set][w.first + row[h]];
    shift[h] = p.shift[set][w.first + row[h]];
  }
  A sum[kDepth / 8][4] = {};
  for_each_tile<Product>(p, set, w, own, other, [&](A(&score)[kCols / 8][4], int from,
                                                    int64_t first, int64_t count, int64_t index) {
#pragma unroll
    for (int t = 0; t < kCols / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = t * 8 + lane % 4 * 2 + i % 2, h = i / 2;
        A g = 0;
        if (column < count && !(index >= 0 && index + column == tile_row + row[h])) {
          const A its_inverse = p.inverse[from][first + column];
          const A its_weight = p.weight[from][first + column];
          const A both = inverse[h] * its_inverse, x = score[t][i] * (both * range_scale);
          if (range.fixed) {
            g = power_of_two(x + range_shift) * ((weight[h] + its_weight) * both);
          } else {
            g = (power_of_two(x - shift[h]) * weight[h] +
                 power_of_two(x - p.shift[from][first + column]) * its_weight) * both;
          }
        }
        narrow(g, weights[row[h] * kWeightStride + column]);
      }
    }
    __syncwarp();  // a warp reads only the rows that it wrote
    Product::template add<kDepth / 8, kCols>(
        sum, weights + threadIdx.x / kWarp * 16 * kWeightStride, kWeightStride, other, kStride, 1);
  });
#pragma unroll
  for (int t = 0; t < kDepth / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t feature = int64_t(w.chunk) * kDepth + t * 8 + lane % 4 * 2 + i % 2;
      const int h = i / 2;
      if (row[h] >= w.count || feature >= d) continue;
      p.part_grad[(int64_t(w.split) * p.rows(set) + w.first + row[h]) * d + feature] =
          sum[t][i] / inverse[h];
    }
  }
}

// A warp per row: the parts in order, the positive's share, and back through the normalization.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    finish_kernel(Problem<T, A> p, int set, T* out) {
  const int64_t row = global_thread<kThreads>() / kWarp, d = p.shape.d;
  if (row >= p.rows(set)) return;
  const A own = p.inverse[set][row], norm = p.norm[set][row];
  const A positive = set < 2 ? p.diagonal[row] * p.inverse[1 - set][row] : A(0);
  const auto gradient = [&](int64_t k) {
    A g = set < 2 ? positive * A(widen(p.z[1 - set][row * d + k])) : A(0);
    for (int split = 0; split < p.splits; ++split) {
      g += p.part_grad[(int64_t(split) * p.rows(set) + row) * d + k];
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
  if (threadIdx.x % kWarp == 0) p.dots[(set == 0 ? 0 : set * p.rows(0)) + row] = dot;
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) temperature_kernel(Problem<T, A> p, A* out) {
  __shared__ double part[kThreads];
  const int64_t rows = 2 * p.rows(0) + p.rows(2);
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

unsigned blocks(int64_t threads) { return num_blocks(threads, kThreads); }
unsigned warps(int64_t rows) { return blocks(rows * kWarp); }

template <class T, class A>
int64_t row_blocks(const InfoNceShape& s, int set, bool backward) {
  const int64_t of_set = set == 2 ? ceil_div(s.k, kRows) : s.pairs * ceil_div(s.n, kRows);
  return of_set * (backward ? ceil_div(s.d, TileShape<T>::kDepth) : 1);
}

// Places the arrays from `base` on (null: only to measure); returns the end.
template <class T, class A>
char* place(Problem<T, A>& p, bool backward, char* base) {
  char* end = base;
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(end);
    end += ceil_div(count * int64_t(sizeof(*pointer)), 256) * 256;
  };
  const InfoNceShape& s = p.shape;
  const int64_t most = std::max(row_blocks<T, A>(s, 0, backward), int64_t(1));
  const int64_t columns = std::max(ceil_div(s.n, TileShape<T>::kCols), int64_t(1));
  p.splits = int(std::clamp<int64_t>(s.processors * kResident / most, 1,
                                     std::min<int64_t>(columns, kMaxSplits)));
  for (int set = 0; set < kSets; ++set) {
    take(p.z[set], p.rows(set) * s.d);
    take(p.inverse[set], p.rows(set));
    take(p.norm[set], p.rows(set));
    if (backward) take(p.weight[set], p.rows(set)), take(p.shift[set], p.rows(set));
  }
  if (backward) {
    take(p.diagonal, p.rows(0));
    take(p.part_grad, p.splits * std::max(p.rows(0), p.rows(2)) * s.d);
    take(p.dots, 2 * p.rows(0) + p.rows(2));
  } else {
    take(p.part_max, p.splits * p.directions() * p.rows(0));
    take(p.part_sum, p.splits * p.directions() * p.rows(0));
  }
  return end;
}

template <class T, class A>
Problem<T, A> make_problem(const InfoNceShape& shape, const T* anchor, const T* positive,
                           const T* negatives, const A* temperature, bool backward, void* scratch,
                           cudaStream_t stream) {
  Problem<T, A> p{};
  p.shape = shape;
  p.x[0] = anchor, p.x[1] = positive, p.x[2] = negatives;
  p.temperature = temperature;
  place(p, backward, static_cast<char*>(scratch));
  for (int set = 0; set < kSets; ++set) {
    if (p.rows(set) == 0) continue;
    MMSSL_LAUNCH((prepare_kernel<T, A>), warps(p.rows(set)), kThreads, stream, p, set);
  }
  return p;
}

// Calls f with the product that a dtype and a precision stand for.
template <class T, class F>
void with_product(Precision precision, const F& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    f(Bf16Product{});
  } else if constexpr (std::is_same_v<T, float>) {
    precision == Precision::kTf32 ? f(Tf32Product{}) : f(FullProduct{});
  } else {
    f(FullProduct{});
  }
}

}  // namespace

template <class T, class A>
int64_t info_nce_scratch(const InfoNceShape& shape, bool backward) {
  Problem<T, A> p{};
  p.shape = shape;
  char* const none = nullptr;
  return place(p, backward, none) - none;
}

template <class T, class A>
cudaError_t launch_info_nce(const InfoNceShape& shape, const T* anchor, const T* positive,
                            const T* negatives, const A* temperature, A* loss, double* saved,
                            void* scratch, cudaStream_t stream) {
  if (shape.pairs * shape.n == 0) return cudaSuccess;
  const auto p =
      make_problem(shape, anchor, positive, negatives, temperature, false, scratch, stream);
  with_product<T>(shape.precision, [&](auto product) {
    using Product = decltype(product);
    for (int set = 0; set < p.directions(); ++set) {
      MMSSL_LAUNCH((sum_kernel<Product, T, A>),
                   unsigned(row_blocks<T, A>(shape, set, false) * p.splits), kThreads, stream, p,
                   set);
    }
  });
  MMSSL_LAUNCH((loss_kernel<T, A>), warps(p.rows(0)), kThreads, stream, p, loss, saved);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t launch_info_nce_backward(const InfoNceShape& shape, const T* anchor, const T* positive,
                                     const T* negatives, const A* temperature, const double* saved,
                                     const A* grad, T* grad_anchor, T* grad_positive,
                                     T* grad_negatives, A* grad_temperature, void* scratch,
                                     cudaStream_t stream) {
  const auto p =
      make_problem(shape, anchor, positive, negatives, temperature, true, scratch, stream);
  const int64_t most = std::max(p.rows(0), p.rows(2));
  T* const out[kSets] = {grad_anchor, grad_positive, grad_negatives};
  if (most > 0) {
    MMSSL_LAUNCH((weight_kernel<T, A>), blocks(most), kThreads, stream, p, grad, saved);
  }
  with_product<T>(shape.precision, [&](auto product) {
    using Product = decltype(product);
    for (int set = 0; set < kSets; ++set) {
      if (p.rows(set) == 0) continue;
      MMSSL_LAUNCH((grad_kernel<Product, T, A>),
                   unsigned(row_blocks<T, A>(shape, set, true) * p.splits), kThreads, stream, p,
                   set);
      MMSSL_LAUNCH((finish_kernel<T, A>), warps(p.rows(set)), kThreads, stream, p, set, out[set]);
    }
  });
  MMSSL_LAUNCH((temperature_kernel<T, A>), 1, kThreads, stream, p, grad_temperature);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T, A)                                                                   \
  template int64_t info_nce_scratch<T, A>(const InfoNceShape&, bool);                             \
  template cudaError_t launch_info_nce<T, A>(const InfoNceShape&, const T*, const T*, const T*,   \
                                             const A*, A*, double*, void*, cudaStream_t);         \
  template cudaError_t launch_info_nce_backward<T, A>(                                            \
      const InfoNceShape&, const T*, const T*, const T*, const A*, const double*, const A*, T*,   \
      T*, T*, A*, void*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
