// InfoNCE on the GPU: launchers over raw pointers. The formula and the shapes are those of
// info_nce.h; the temperature stays on the device, so nothing waits for it.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/cuda_kernel.h"
#include "common/exponent_range.h"
#include "common/tensor_core.cuh"

namespace mmssl::cuda {

// How float32 products are computed: plain multiply-adds, or tensor cores on TF32 operands.
enum class Precision { kFull, kTf32 };

struct InfoNceShape {
  int64_t pairs, n, m, k, d;  // B, N, M, K, D
  bool in_batch, intra_view, symmetric;
  double eps;
  Precision precision;
  int processors;  // multiprocessors to keep busy
  bool hopper;     // the device has compute capability 9.0: kernels with wgmma run
};

// Bytes of scratch that a launch needs, aligned to 256; targeted: there is a target.
template <class T, class A>
int64_t info_nce_scratch(const InfoNceShape& shape, bool targeted, bool backward);

// loss (B, N); saved (directions + 1, B, N): lse of each direction, then s12_iy. target (B, N), or
// null for y = i; count (B,), the rows of each pair that are there, or null for all, without target and
// negatives. Both are on the device, so that their entries are not checked.
template <class T, class A>
cudaError_t launch_info_nce(const InfoNceShape& shape, const T* anchor, const T* positive,
                            const T* negatives, const int64_t* target, const int64_t* count,
                            const A* temperature, A* loss, double* saved, void* scratch, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_info_nce_backward(const InfoNceShape& shape, const T* anchor, const T* positive,
                                     const T* negatives, const int64_t* target,
                                     const int64_t* count, const A* temperature, const double* saved, const A* grad,
                                     T* grad_anchor, T* grad_positive, T* grad_negatives,
                                     A* grad_temperature, void* scratch, cudaStream_t stream);

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
// The rest of this header is what the kernels share: products of tiles, the operands, the work of a
// block, and the loop over tiles of columns.
//
// In a product a warp owns 16 rows of the result. Lane l holds, for every 8 columns, the entries of
// rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and 2 (l % 4) + 1: the layout of mma.sync, used by
// all products.

// Entries p[0] and p[step] as one word; neighbors are loaded at once, for which tiles are aligned.
__device__ __forceinline__ uint32_t pair(const bf16* p, int step) {
  if (step != 1) return uint32_t(p[0].bits) | uint32_t(p[step].bits) << 16;
  uint32_t word;
  memcpy(&word, __builtin_assume_aligned(p, 4), sizeof(word));
  return word;
}

// sum[t] += a (16, kDepth) b (kDepth, 8 kTiles): a[row * lda + k], b[k * b_depth + column * b_column].
struct FullProduct {
  template <int kTiles, int kDepth, class S, class A>
  static __device__ __forceinline__ void add(A (&sum)[kTiles][4], const S* a, int lda, const S* b,
                                             int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      const A top = widen(a[row * lda + k]), bottom = widen(a[(row + 8) * lda + k]);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const S* from = b + k * b_depth + (t * 8 + column) * b_column;
        const A left = widen(from[0]), right = widen(from[b_column]);
        sum[t][0] += top * left;
        sum[t][1] += top * right;
        sum[t][2] += bottom * left;
        sum[t][3] += bottom * right;
      }
    }
  }
};

struct Tf32Product {
  template <int kTiles, int kDepth>
  static __device__ __forceinline__ void add(float (&sum)[kTiles][4], const float* a, int lda,
                                             const float* b, int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      const float* from = a + group * lda + k + part;
      const uint32_t fa[4] = {to_tf32(from[0]), to_tf32(from[8 * lda]), to_tf32(from[4]),
                              to_tf32(from[8 * lda + 4])};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float* p = b + (k + part) * b_depth + (t * 8 + group) * b_column;
        const uint32_t fb[2] = {to_tf32(p[0]), to_tf32(p[4 * b_depth])};
        mma_tf32(sum[t], fa, fb);
      }
    }
  }
};

struct Bf16Product {
  template <int kTiles, int kDepth>
  static __device__ __forceinline__ void add(float (&sum)[kTiles][4], const bf16* a, int lda,
                                             const bf16* b, int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const bf16* from = a + group * lda + k + part;
      const bf16* below = from + 8 * lda;
      const uint32_t fa[4] = {pair(from, 1), pair(below, 1), pair(from + 8, 1), pair(below + 8, 1)};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const bf16* p = b + (k + part) * b_depth + (t * 8 + group) * b_column;
        const bf16* q = p + 8 * b_depth;
        const uint32_t fb[2] = {pair(p, b_depth), pair(q, b_depth)};
        mma_bf16(sum[t], fa, fb);
      }
    }
  }
};

constexpr int kRows = 64;     // of a block: 16 per warp
constexpr int kThreads = kTileBlock;
constexpr int kMaxSplits = 32;
constexpr int kResident = 2;  // blocks per multiprocessor, few enough that no register spills
constexpr int kSets = 3;  // 0 the anchors, 1 the positives, 2 the negatives

// Columns and features of a tile, and the padding of its rows that avoids bank conflicts in shared
// memory; all three tiles fit in 48 KiB.
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
  const int64_t* target;  // (B, N), each in [-1, M); null: the positive of row i is row i
  const int64_t* count;   // (B,), or null; on the device
  const A* temperature;
  T* z[kSets];        // rows of norm 1 (bfloat16: x times a power of two, norm in [1, 2))
  A* inverse[kSets];  // 1 / norm of those
  A* norm[kSets];     // of x, at least 1e-12
  int splits;  // of the columns of a block's rows
  // The blocks of the large kernel of a pass before those of each set: of both directions in the
  // forward, of all sets in the backward.
  unsigned first_block[kSets + 1];
  A *part_max, *part_sum;  // forward: (splits, directions, B N)
  A *weight[kSets], *shift[kSets], *diagonal;  // backward, per row
  A* part_grad;                                // of each set: (splits, rows, D)
  double* dots;                                // <z, dz> per row of all sets
  int *first_anchor, *next_anchor;  // backward, with target: the anchors of each positive, ascending

  // Of the pipelined kernels (mma.cuh), for which these are laid out; 0 where they don't serve.
  int form_terms, form_depth;
  bool warpgroups;  // for wgmma_sm90a.cu
  bf16* panel[kSets];
  float *column[kSets], *column_shift[kSets];  // ColumnPair per two padded rows; shift
  int* padded_target;                          // per padded anchor, where there is a target

  __host__ __device__ int64_t rows(int set) const {
    return set == 2 ? shape.k : shape.pairs * (set == 0 ? shape.n : shape.m);
  }
  // How many of a pair's rows are there, the others being padding, or -1 for all.
  __device__ int live(int64_t pair) const {
    if (count == nullptr) return -1;
    return int(count[pair] < 0 ? 0 : count[pair] < shape.n ? count[pair] : shape.n);
  }
  __device__ bool is_padding(int set, int64_t row) const {
    return count != nullptr && set < 2 && row % shape.n >= live(row / shape.n);
  }
  // The set of a block of the large kernel.
  __host__ __device__ int set_of_block(unsigned block) const {
    return block < first_block[1] ? 0 : block < first_block[2] ? 1 : 2;
  }
  // A row among those of all sets: takes off the rows of the sets before its own, which is returned, or
  // kSets behind the last.
  __host__ __device__ int set_of_row(int64_t& row) const {
    int set = 0;
    for (; set < kSets && row >= rows(set); ++set) row -= rows(set);
    return set;
  }
  // The gradients of a set's rows over a part of the columns.
  __host__ __device__ A* parts(int set, int split) const {
    const int64_t before = set == 0 ? 0 : rows(0) + (set == 1 ? 0 : rows(1));
    return part_grad + (splits * before + split * rows(set)) * shape.d;
  }
  // The row of the positive among the rows of set 1, or -1, for a row of set 0.
  __host__ __device__ int64_t positive_of(int64_t row) const {
    if (target == nullptr) return row;
    return target[row] < 0 ? -1 : row / shape.n * shape.m + target[row];
  }
  // Whether a column of a pair's copy of a set is left out of a row of its copy of another: it is the
  // row itself, or one is the positive of the other.
  __host__ __device__ bool left_out(int set, int from, int64_t pair, int64_t row,
                                    int64_t column) const {
    if (target == nullptr || set == from) return row == column;
    const int64_t anchor = pair * shape.n + (set == 0 ? row : column);
    return target[anchor] == (set == 0 ? column : row);
  }
  __host__ __device__ int directions() const { return shape.symmetric ? 2 : 1; }
};

__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

// The rows of a pair's copy of a set; of all negatives.
__host__ __device__ inline int64_t copy_rows(const InfoNceShape& s, int set) {
  return set == 0 ? s.n : set == 1 ? s.m : s.k;
}

// The columns that pair with the rows of a set: `count` rows of another, without what
// Problem::left_out names if `same_index`.
struct Source {
  int set;
  int64_t first, count;
  bool same_index;
};
// live: see Problem.
__host__ __device__ inline Source source(const InfoNceShape& s, int set, int64_t pair, int index,
                                         int live) {
  const int64_t rows = copy_rows(s, set), others = copy_rows(s, 1 - set);
  const bool is_anchor = set == 0 || (set == 1 && s.symmetric);
  if (set == 2) {  // the anchors of all pairs
    return {index, 0, index == 0 || (index == 1 && s.symmetric) ? s.pairs * s.n : 0, false};
  }
  if (index == 0) return {1 - set, pair * others, !s.in_batch ? 0 : live < 0 ? others : live, true};
  if (index == 1) return {set, pair * rows, !s.intra_view || !is_anchor ? 0 : live < 0 ? rows : live, true};
  return {2, 0, is_anchor ? s.k : 0, false};
}
// The work of a block: rows [first, first + count) of a set, columns of tiles [begin, end).
template <class T>
struct Work {
  int64_t pair, first, count, begin, end;
  int chunk, split;  // of features; of columns
  int live;          // of the pair, see Problem
};
template <class T, class A>
__device__ Work<T> work_of_block(const Problem<T, A>& p, int set, int chunks) {
  const int64_t rows = copy_rows(p.shape, set), row_tiles = ceil_div(rows, kRows);
  int64_t block = blockIdx.x - p.first_block[set];
  Work<T> w;
  w.split = int(block % p.splits), block /= p.splits;
  w.chunk = int(block % chunks), block /= chunks;
  w.pair = block / row_tiles;
  const int64_t tile = block % row_tiles;
  w.first = w.pair * rows + tile * kRows;
  w.live = p.live(w.pair);
  const int64_t left = (w.live < 0 ? rows : w.live) - tile * kRows;
  w.count = left < 0 ? 0 : left < kRows ? left : kRows;
  int64_t total = 0;
  for (int n = 0; n < kSets && w.count > 0; ++n) {
    total += ceil_div(source(p.shape, set, w.pair, n, w.live).count, TileShape<T>::kCols);
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
    const bool inside = row < count && feature + k < d;
    to[row * kStride + k] = inside ? z[(first + row) * d + feature + k] : T{};
  }
}

// Calls visit(scores, column set, first column, columns, index of the first column, or -1 where no
// column is left out) for every tile of a block's columns. `own` and `other` are shared memory;
// `other` is left with the features of the block's chunk.
template <class Product, class T, class A, class Visit>
__device__ __forceinline__ void for_each_tile(const Problem<T, A>& p, int set, const Work<T>& w,
                                              T* own, T* other, const Visit& visit) {
  constexpr int kCols = TileShape<T>::kCols, kDepth = TileShape<T>::kDepth;
  constexpr int kStride = kDepth + TileShape<T>::kPad;
  const int64_t d = p.shape.d;
  const int chunks = int(ceil_div(d, kDepth));
  int64_t before = 0;
  bool loaded = false;
  for (int n = 0; n < kSets; ++n) {
    const Source from = source(p.shape, set, w.pair, n, w.live);
    const int64_t here = ceil_div(from.count, kCols);
    const int64_t begin = w.begin > before ? w.begin - before : 0;
    const int64_t end = w.end - before < here ? w.end - before : here;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t left = from.count - tile * kCols, first = from.first + tile * kCols;
      const int64_t count = left < kCols ? left : kCols;
      A score[kCols / 8][4] = {};
      for (int step = 1; step <= chunks; ++step) {
        const int64_t feature = int64_t((w.chunk + step) % chunks) * kDepth;
        __syncthreads();  // all threads are done with the last tiles
        if (chunks > 1 || !loaded) load_tile(own, p.z[set], w.first, w.count, kRows, feature, d);
        load_tile(other, p.z[from.set], first, count, kCols, feature, d);
        loaded = true;
        __syncthreads();
        Product::template add<kCols / 8, kDepth>(score, own + threadIdx.x / kWarp * 16 * kStride,
                                                 kStride, other, 1, kStride);
      }
      visit(score, from.set, first, count, from.same_index ? tile * kCols : int64_t(-1));
    }
    before += here;
  }
}

// The pipelined kernels for tensor cores (mma.cu): what the launchers need to know.
//
// Rows are kept as panels of bfloat16: tiles of 64 rows, of kTerms planes each, of kDepth features,
// padded with zeros, so that a tile is one run of memory. One term holds a bfloat16 row exactly
// (scaled by a power of two; its 1 / norm is applied to the scores). float32 rows are normalized and
// split: two terms are 16 bits of each number, more than the 11 of TF32, and three are all 24.
namespace pipelined {

constexpr int kRows = 128;  // of a block: 16 per warp
constexpr int kCols = 64;   // of a tile
constexpr int kThreads = 256;

// The terms and the depth of the panels for a problem, or {0, 0} where these kernels don't apply.
struct Form {
  int terms = 0, depth = 0;
  // Of shared memory, at most; see Shape in mma.cu.
  constexpr int bytes() const {
    return (terms * depth > 192 ? 4 : 3) * kCols * (terms * (depth + 8) * 2 + 16);
  }
};
template <class T, class A>
Form form(const InfoNceShape& s) {
  if (sizeof(A) == 8 || s.d > 256) return {};
  Form f;
  f.terms = sizeof(T) == 2 ? 1 : s.precision == Precision::kTf32 ? 2 : 3;
  f.depth = s.d <= 64 ? 64 : s.d <= 128 ? 128 : 256;
  return f.terms * f.depth <= 256 && f.bytes() <= max_shared_memory() ? f : Form{};
}

// Rows of all copies of a set, each padded to whole blocks.
__host__ __device__ inline int64_t padded(const InfoNceShape& s, int set) {
  return (set == 2 ? 1 : s.pairs) * ceil_div(copy_rows(s, set), kRows) * kRows;
}

// Fills the panels and what belongs to their columns, for which the backward needs the weights, and
// computes what sum_kernel or, in the backward, grad_kernel of kernels.cu does.
template <class T>
void launch_tiles(const Problem<T, float>& p, bool backward, cudaStream_t stream);

// The same without the panels, by wgmma (wgmma_sm90a.cu), on panels of their own: a tile is kept as planes of 64 features,
// whose lines of 128 bytes are swizzled as the products want them in shared memory. So a bulk copy of a
// tile needs no description of it, which only the driver could make.
void launch_warpgroups(const Problem<bf16, float>& p, bool backward, cudaStream_t stream);

}  // namespace pipelined

#endif

}  // namespace mmssl::cuda
