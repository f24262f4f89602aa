// Every block owns some rows and loops over tiles of columns; nothing of size N x N is kept, and no
// two blocks add to the same number. Both directions of a forward, and all sets of rows of a backward,
// share a launch. With few rows the columns are split between blocks as well, and a last kernel adds the
// parts in order. The kernels of this file take every type and width; those
// of mma.cu are preferred where they apply.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "ops/info_nce/rows.cuh"

namespace mmssl::cuda {
namespace {

// Sums the exponentials of 64 rows of set 0, or of set 1 for the second direction.
template <class Product, class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) sum_kernel(Problem<T, A> p) {
  const int set = p.set_of_block(blockIdx.x);
  constexpr int kCols = TileShape<T>::kCols, kStride = TileShape<T>::kDepth + TileShape<T>::kPad;
  alignas(16) __shared__ T own[kRows * kStride];
  alignas(16) __shared__ T other[kCols * kStride];
  const Work<T> w = work_of_block(p, set, 1);
  const Range<A> range{double(*p.temperature)};
  const A range_scale = A(range.scale), range_shift = A(range.shift);
  const int lane = threadIdx.x % kWarp;
  const int64_t row[2] = {threadIdx.x / kWarp * 16 + lane / 4, threadIdx.x / kWarp * 16 + lane / 4 + 8};
  const int64_t tile_row = w.first - w.pair * copy_rows(p.shape, set);
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
        const bool out = column >= count ||
                         (index >= 0 && row[h] < w.count &&
                          p.left_out(set, from, w.pair, tile_row + row[h], index + column));
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

// Gradients of 64 normalized rows, one chunk of features: sum_j g_ij z_j over the block's columns.
template <class Product, class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) grad_kernel(Problem<T, A> p) {
  const int set = p.set_of_block(blockIdx.x);
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
  const int64_t tile_row = w.first - w.pair * copy_rows(p.shape, set);
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
        if (column < count && row[h] < w.count &&
            !(index >= 0 && p.left_out(set, from, w.pair, tile_row + row[h], index + column))) {
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
      p.parts(set, w.split)[(w.first + row[h]) * d + feature] = sum[t][i] / inverse[h];
    }
  }
}

unsigned blocks(int64_t threads) { return num_blocks(threads, kThreads); }
unsigned warps(int64_t rows) { return blocks(rows * kWarp); }

// MMSSL_INFO_NCE=tiles keeps to the kernels of this file, MMSSL_INFO_NCE=mma to these and mma.cu, to
// compare them on a GPU.
bool wants(const char* kernels) {
  const char* choice = std::getenv("MMSSL_INFO_NCE");
  return choice != nullptr && std::strcmp(choice, kernels) == 0;
}

template <class T, class A>
int64_t row_blocks(const InfoNceShape& s, int set, bool backward) {
  const int64_t of_set = (set == 2 ? 1 : s.pairs) * ceil_div(copy_rows(s, set), kRows);
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
  const pipelined::Form form = wants("tiles") ? pipelined::Form{} : pipelined::form<T, A>(s);
  p.form_terms = form.terms, p.form_depth = form.depth;
  p.warpgroups = s.hopper && std::is_same_v<T, bf16> && form.terms > 0 && !wants("mma");
  const int sets = backward ? kSets : p.directions();
  int64_t blocks[kSets] = {}, all_blocks = 0, tiles = 1;  // tiles: of columns, for the rows with most
  for (int set = 0; set < sets; ++set) {
    if (p.rows(set) == 0) continue;
    blocks[set] = form.terms > 0 ? pipelined::padded(s, set) / pipelined::kRows
                                 : row_blocks<T, A>(s, set, backward);
    all_blocks += blocks[set];
    int64_t columns = 0;
    for (int n = 0; n < kSets; ++n) columns += source(s, set, 0, n, -1).count;
    const int64_t of_tile = form.terms > 0 ? pipelined::kCols : TileShape<T>::kCols;
    tiles = std::max(tiles, ceil_div(columns, of_tile));
  }
  p.splits = int(std::clamp<int64_t>(s.processors * kResident / std::max(all_blocks, int64_t(1)), 1,
                                     std::min<int64_t>(tiles, kMaxSplits)));
  for (int set = 0; set < kSets; ++set) {
    p.first_block[set + 1] = p.first_block[set] + unsigned(blocks[set] * p.splits);
  }
  for (int set = 0; set < kSets; ++set) {
    take(p.z[set], p.rows(set) * s.d);
    take(p.inverse[set], p.rows(set));
    take(p.norm[set], p.rows(set));
    if (backward) take(p.weight[set], p.rows(set)), take(p.shift[set], p.rows(set));
    if (form.terms == 0) continue;
    const int64_t rows = pipelined::padded(s, set);
    take(p.panel[set], rows * form.terms * form.depth);
    take(p.column[set], 2 * rows);
    if (backward) take(p.column_shift[set], rows);
  }
  if (form.terms > 0 && p.target != nullptr) take(p.padded_target, pipelined::padded(s, 0));
  if (backward) {
    take(p.diagonal, p.rows(0));
    take(p.part_grad, p.splits * (p.rows(0) + p.rows(1) + p.rows(2)) * s.d);
    take(p.dots, p.rows(0) + p.rows(1) + p.rows(2));
    if (p.target != nullptr) take(p.first_anchor, p.rows(1)), take(p.next_anchor, p.rows(0));
  } else {
    take(p.part_max, p.splits * p.directions() * p.rows(0));
    take(p.part_sum, p.splits * p.directions() * p.rows(0));
  }
  return end;
}

template <class T, class A>
Problem<T, A> make_problem(const InfoNceShape& shape, const T* anchor, const T* positive,
                           const T* negatives, const int64_t* target, const int64_t* count,
                           const A* temperature, bool backward, void* scratch, cudaStream_t stream) {
  Problem<T, A> p{};
  p.shape = shape;
  p.target = target, p.count = count;
  p.x[0] = anchor, p.x[1] = positive, p.x[2] = negatives;
  p.temperature = temperature;
  place(p, backward, static_cast<char*>(scratch));
  const int64_t rows = p.rows(0) + p.rows(1) + p.rows(2);
  if (rows > 0) MMSSL_LAUNCH((prepare_kernel<T, A>), warps(rows), kThreads, stream, p);
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

// The sums of the forward, or the gradients of the backward.
template <class T, class A>
void launch_tiles(const Problem<T, A>& p, bool backward, cudaStream_t stream) {
  if constexpr (sizeof(A) == 4) {
    if (p.form_terms > 0) return pipelined::launch_tiles(p, backward, stream);
  }
  with_product<T>(p.shape.precision, [&](auto product) {
    using Product = decltype(product);
    const unsigned blocks = p.first_block[kSets];
    if (backward) {
      MMSSL_LAUNCH((grad_kernel<Product, T, A>), blocks, kThreads, stream, p);
    } else {
      MMSSL_LAUNCH((sum_kernel<Product, T, A>), blocks, kThreads, stream, p);
    }
  });
}

}  // namespace

template <class T, class A>
int64_t info_nce_scratch(const InfoNceShape& shape, bool targeted, bool backward) {
  Problem<T, A> p{};
  p.shape = shape;
  static constexpr int64_t kAny = 0;
  p.target = targeted ? &kAny : nullptr;
  char* const none = nullptr;
  return place(p, backward, none) - none;
}

template <class T, class A>
cudaError_t launch_info_nce(const InfoNceShape& shape, const T* anchor, const T* positive,
                            const T* negatives, const int64_t* target, const int64_t* count,
                            const A* temperature, A* loss, double* saved, void* scratch, cudaStream_t stream) {
  if (shape.pairs * shape.n == 0) return cudaSuccess;
  const auto p =
      make_problem(shape, anchor, positive, negatives, target, count, temperature, false, scratch,
                   stream);
  launch_tiles(p, false, stream);
  MMSSL_LAUNCH((loss_kernel<T, A>), warps(p.rows(0)), kThreads, stream, p, loss, saved);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t launch_info_nce_backward(const InfoNceShape& shape, const T* anchor, const T* positive,
                                     const T* negatives, const int64_t* target,
                                     const int64_t* count, const A* temperature,
                                     const double* saved, const A* grad, T* grad_anchor,
                                     T* grad_positive, T* grad_negatives, A* grad_temperature,
                                     void* scratch, cudaStream_t stream) {
  const auto p =
      make_problem(shape, anchor, positive, negatives, target, count, temperature, true, scratch,
                   stream);
  const int64_t most = std::max({p.rows(0), p.rows(1), p.rows(2)});
  if (most > 0) {
    MMSSL_LAUNCH((weight_kernel<T, A>), blocks(most), kThreads, stream, p, grad, saved);
    launch_tiles(p, true, stream);
  }
  if (target != nullptr && p.rows(0) > 0 && p.rows(1) > 0) {
    // Bytes of 0x7f make a number that is larger than any row.
    const cudaError_t cleared =
        cudaMemsetAsync(p.first_anchor, 0x7f, p.rows(1) * sizeof(int), stream);
    if (cleared != cudaSuccess) return cleared;
    MMSSL_LAUNCH((anchors_kernel<T, A>), warps(p.rows(0)), kThreads, stream, p);
    MMSSL_LAUNCH((positives_kernel<T, A>), warps(p.rows(1)), kThreads, stream, p);
  }
  if (most > 0) {
    const Gradients<T> out{{grad_anchor, grad_positive, grad_negatives}};
    MMSSL_LAUNCH((finish_kernel<T, A>), warps(p.rows(0) + p.rows(1) + p.rows(2)), kThreads, stream, p,
                 out);
  }
  MMSSL_LAUNCH((temperature_kernel<T, A>), 1, kThreads, stream, p, grad_temperature);
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T, A)                                                                   \
  template int64_t info_nce_scratch<T, A>(const InfoNceShape&, bool, bool);                       \
  template cudaError_t launch_info_nce<T, A>(const InfoNceShape&, const T*, const T*, const T*,   \
                                             const int64_t*, const int64_t*, const A*, A*, double*, \
                                             void*, cudaStream_t);                                \
  template cudaError_t launch_info_nce_backward<T, A>(                                            \
      const InfoNceShape&, const T*, const T*, const T*, const int64_t*, const int64_t*, const A*, \
      const double*, const A*, T*, T*, T*, A*, void*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
