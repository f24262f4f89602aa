// What the kernels of info_nce share: the operands, who does what, and the walk over tiles of columns.
#pragma once
#include <cmath>

#include "cuda/info_nce.cuh"
#include "cuda/info_nce_mma.cuh"

namespace mmssl::cuda {

constexpr int kRows = 64;     // of a block: 16 per warp
constexpr int kThreads = 128;
constexpr int kMaxSplits = 16;
constexpr int kResident = 2;  // blocks per multiprocessor; leaves each thread registers enough not to spill
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr int kSets = 3;  // 0 the anchors, 1 the positives, 2 the negatives

// Columns and features of a tile, and the padding of its rows that keeps shared memory free of bank
// conflicts; all three tiles fit in 48 KiB.
template <class T>
struct TileShape;
template <>
struct TileShape<bf16> {
  static constexpr int kCols = 64, kDepth = 64, kPad = 8;
};
template <>
struct TileShape<float> {
  static constexpr int kCols = 32, kDepth = 64, kPad = 4;
};
template <>
struct TileShape<double> {
  static constexpr int kCols = 32, kDepth = 32, kPad = 2;
};

template <class T, class A>
struct Problem {
  InfoNceShape shape;
  const T* x[kSets];
  const A* temperature;
  T* z[kSets];        // rows of norm 1 (bfloat16: x times a power of two, norm in [1, 2))
  A* inverse[kSets];  // 1 / norm of those
  A* norm[kSets];     // of x, at least 1e-12
  int splits;
  A *part_max, *part_sum;  // forward: (splits, directions, B N)
  A *weight[kSets], *shift[kSets], *diagonal;  // backward, per row
  A* part_grad;                                // (splits, rows of the largest set, D)
  double* dots;                                // <z, dz> per row of all sets

  __host__ __device__ int64_t rows(int set) const {
    return set == 2 ? shape.k : shape.pairs * shape.n;
  }
  __host__ __device__ int directions() const { return shape.symmetric ? 2 : 1; }
};

__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

// exp2(scale * s + shift) keeps every term in range, or there is no such shift (fixed = false). The
// same choice as on the CPU.
template <class A>
struct Range {
  A scale, shift;
  bool fixed;
  __device__ explicit Range(A temperature) {
    constexpr double lowest = sizeof(A) == 4 ? -110 : -900, highest = sizeof(A) == 4 ? 60 : 600;
    const double c = kLog2E / double(temperature);
    fixed = 2 * c <= highest - lowest;
    scale = A(c);
    shift = A((2 * c + lowest > 0 ? 2 * c + lowest : 0) - c);
  }
};

__device__ __forceinline__ double warp_sum(double v) {
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
  return v;
}

// A warp per row of a set: its norm, and the row scaled by it.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident) prepare_kernel(Problem<T, A> p, int set) {
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, d = p.shape.d;
  if (row >= p.rows(set)) return;
  const T* x = p.x[set] + row * d;
  double sum = 0;
  for (int64_t k = threadIdx.x % 32; k < d; k += 32) {
    const double v = widen(x[k]);
    sum += v * v;
  }
  double norm = sqrt(warp_sum(sum));
  norm = norm < 1e-12 ? 1e-12 : norm;
  double by = norm, inverse = 1;
  if (sizeof(T) == 2) {
    int exponent;
    const double fraction = frexp(norm, &exponent);
    by = ldexp(1.0, exponent - 1);
    inverse = 0.5 / fraction;
  }
  for (int64_t k = threadIdx.x % 32; k < d; k += 32) {
    narrow(A(A(widen(x[k])) / A(by)), p.z[set][row * d + k]);
  }
  if (threadIdx.x % 32 == 0) p.inverse[set][row] = A(inverse), p.norm[set][row] = A(norm);
}

// The columns that rows of a set meet: `count` rows of another, without i == j if `same_index`.
struct Source {
  int set;
  int64_t first, count;
  bool same_index;
};
__host__ __device__ inline Source source(const InfoNceShape& s, int set, int64_t pair, int index) {
  const int64_t all = s.pairs * s.n;
  const bool is_anchor = set == 0 || (set == 1 && s.symmetric);
  if (set == 2) return {index, 0, index == 0 || (index == 1 && s.symmetric) ? all : 0, false};
  if (index == 0) return {1 - set, pair * s.n, s.n, true};
  if (index == 1) return {set, pair * s.n, s.intra_view && is_anchor ? s.n : 0, true};
  return {2, 0, is_anchor ? s.k : 0, false};
}
__host__ __device__ inline int64_t tiles(int64_t rows, int size) { return (rows + size - 1) / size; }

// What a block does: rows [first, first + count) of a set, columns of tiles [begin, end).
template <class T>
struct Work {
  int64_t pair, first, count, begin, end;
  int chunk, split;  // of features; of columns
};
template <class T, class A>
__device__ Work<T> work_of_block(const Problem<T, A>& p, int set, int chunks) {
  const int64_t rows = set == 2 ? p.shape.k : p.shape.n, row_tiles = tiles(rows, kRows);
  int64_t block = blockIdx.x;
  Work<T> w;
  w.split = int(block % p.splits), block /= p.splits;
  w.chunk = int(block % chunks), block /= chunks;
  w.pair = block / row_tiles;
  const int64_t tile = block % row_tiles;
  w.first = w.pair * rows + tile * kRows;
  w.count = rows - tile * kRows < kRows ? rows - tile * kRows : kRows;
  int64_t total = 0;
  for (int n = 0; n < kSets; ++n) {
    total += tiles(source(p.shape, set, w.pair, n).count, TileShape<T>::kCols);
  }
  w.begin = total * w.split / p.splits;
  w.end = total * (w.split + 1) / p.splits;
  return w;
}

template <class T>
__device__ void load_tile(T* to, const T* z, int64_t first, int64_t count, int size, int64_t feature,
                          int64_t d) {
  constexpr int kDepth = TileShape<T>::kDepth, kStride = kDepth + TileShape<T>::kPad;
  for (int n = threadIdx.x; n < size * kDepth; n += kThreads) {
    const int row = n / kDepth, k = n % kDepth;
    const bool there = row < count && feature + k < d;
    to[row * kStride + k] = there ? z[(first + row) * d + feature + k] : T{};
  }
}

// Calls visit(scores, column set, first column, columns, index of the first column or -1 where none
// is left out) for every tile of a block's columns. `own` and `other` are shared memory; `other` is
// left with the features of the block's chunk.
template <class Product, class T, class A, class Visit>
__device__ __forceinline__ void for_each_tile(const Problem<T, A>& p, int set, const Work<T>& w,
                                              T* own, T* other, const Visit& visit) {
  constexpr int kCols = TileShape<T>::kCols, kDepth = TileShape<T>::kDepth;
  constexpr int kStride = kDepth + TileShape<T>::kPad;
  const int64_t d = p.shape.d;
  const int chunks = int(tiles(d, kDepth));
  int64_t before = 0;
  bool loaded = false;
  for (int n = 0; n < kSets; ++n) {
    const Source from = source(p.shape, set, w.pair, n);
    const int64_t here = tiles(from.count, kCols);
    const int64_t begin = w.begin > before ? w.begin - before : 0;
    const int64_t end = w.end - before < here ? w.end - before : here;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t left = from.count - tile * kCols, first = from.first + tile * kCols;
      const int64_t count = left < kCols ? left : kCols;
      A score[kCols / 8][4] = {};
      for (int step = 1; step <= chunks; ++step) {
        const int64_t feature = int64_t((w.chunk + step) % chunks) * kDepth;
        __syncthreads();  // everyone is done with the last tiles
        if (chunks > 1 || !loaded) load_tile(own, p.z[set], w.first, w.count, kRows, feature, d);
        load_tile(other, p.z[from.set], first, count, kCols, feature, d);
        loaded = true;
        __syncthreads();
        Product::template add<kCols / 8, kDepth>(score, own + threadIdx.x / 32 * 16 * kStride,
                                                 kStride, other, 1, kStride);
      }
      visit(score, from.set, first, count, from.same_index ? tile * kCols : int64_t(-1));
    }
    before += here;
  }
}

}  // namespace mmssl::cuda
