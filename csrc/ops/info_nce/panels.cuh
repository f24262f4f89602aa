// What the kernels on panels (mma.cu, wgmma_sm90a.cu) share: the rows of a block, its tiles of columns,
// masks.
#pragma once
#include "ops/info_nce/kernels.cuh"

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda::pipelined {

// What two neighboring columns have in addition to their features.
struct alignas(16) ColumnPair {
  float inverse[2], weight[2];  // 1 / norm; weight * inverse
};

struct Block {
  int pair;
  int first, count;  // rows [first, first + count) of the pair's set
  int begin, end;    // its tiles of columns
  int split;
};

// The columns that the rows of a block meet, one copy of a set at a time. Negatives meet the anchors
// of all pairs.
struct Columns {
  int set, pair, count;
  bool same_index;
};
__device__ inline int num_sources(const InfoNceShape& s, int set) {
  return set == 2 ? 2 * int(s.pairs) : kSets;
}
__device__ inline Columns source_of(const InfoNceShape& s, int set, int pair, int index) {
  if (set == 2) {
    const bool has_anchors = index < s.pairs || s.symmetric;
    return {index < s.pairs ? 0 : 1, int(index % s.pairs), has_anchors ? int(s.n) : 0, false};
  }
  const Source from = source(s, set, pair, index);
  return {from.set, pair, int(from.count), from.same_index};
}

// The tiles of columns of a block, in order.
struct Cursor {
  int source = -1, tile = -1, end = 0;  // the present tile of the present source, and its last + 1
  int total = 0;                        // tiles of the sources up to it
  Columns from{};

  template <class P>
  __device__ bool next(const P& p, int rows_set, const Block& b) {
    if (++tile < end) return true;
    while (++source < num_sources(p.shape, rows_set)) {
      from = source_of(p.shape, rows_set, b.pair, source);
      const int before = total;
      total += int(ceil_div(from.count, kCols));
      tile = b.begin > before ? b.begin - before : 0;
      end = (b.end < total ? b.end : total) - before;
      if (tile < end) return true;
    }
    return false;
  }
};

template <class P>
__device__ Block block_of(const P& p, int set) {
  const int64_t rows = copy_rows(p.shape, set), row_blocks = ceil_div(rows, kRows);
  int64_t index = blockIdx.x - p.first_block[set];
  Block b;
  b.split = int(index % p.splits), index /= p.splits;
  b.pair = int(index / row_blocks);
  b.first = int(index % row_blocks) * kRows;
  b.count = rows - b.first < kRows ? int(rows - b.first) : kRows;
  int64_t total = 0;
  for (int n = 0; n < num_sources(p.shape, set); ++n) {
    total += ceil_div(source_of(p.shape, set, b.pair, n).count, kCols);
  }
  b.begin = int(total * b.split / p.splits), b.end = int(total * (b.split + 1) / p.splits);
  return b;
}

// The first row of a pair's copy of a set among its padded rows.
template <class P>
__device__ __forceinline__ int64_t padded_first(const P& p, int set, int64_t pair) {
  return set == 2 ? 0 : pair * (ceil_div(copy_rows(p.shape, set), kRows) * kRows);
}

// Which entries of a tile are left out: those behind the end of a set, a row with itself, and
// positives.
enum class Leave { kNothing, kSameIndex, kPositivesOfRows, kPositivesOfColumns };
struct Mask {
  const Block& block;
  int first, count;    // the columns begin there, and end with the set
  Leave leave;
  const int* targets;  // the positives of the block's rows, or those of the columns

  // Whether any entry is: the same for all lanes of the warp.
  __device__ __forceinline__ bool any() const {
    const int lane = threadIdx.x % kWarp;
    if (first + kCols > count) return true;
    const int own = int(threadIdx.x) / kWarp * 16;  // the first of the warp's rows
    if (leave == Leave::kPositivesOfRows) {
      return __ballot_sync(kAllLanes, unsigned(targets[own + lane % 16] - first) < unsigned(kCols));
    }
    if (leave == Leave::kPositivesOfColumns) {
      return __ballot_sync(kAllLanes, unsigned(targets[lane] - block.first - own) < 16u ||
                                          unsigned(targets[lane + 32] - block.first - own) < 16u);
    }
    return leave == Leave::kSameIndex && first < block.first + kRows &&
           block.first < first + kCols;
  }
  // Writes `out` over what is left out of columns [16 u, 16 u + 16).
  __device__ __forceinline__ void apply(int u, float out, float (&x)[2][4]) const {
    const int lane = threadIdx.x % kWarp, own = int(threadIdx.x) / kWarp * 16 + lane / 4;
    int skip[2] = {-1, -1};  // the column that is left out of a row
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (leave == Leave::kSameIndex) skip[h] = block.first + own + 8 * h;
      if (leave == Leave::kPositivesOfRows) skip[h] = targets[own + 8 * h];
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int at = u * 16 + n / 2 * 8 + lane % 4 * 2 + n % 2;
      const int row = leave == Leave::kPositivesOfColumns ? targets[at] - block.first - own : -1;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool left_out = first + at >= count || first + at == skip[h] || row == 8 * h;
        if (left_out) x[n / 2][2 * h + n % 2] = out;
      }
    }
  }
};

// The two columns of n-tile t that this lane holds.
__device__ __forceinline__ ColumnPair columns_of(const ColumnPair* columns, int u, int t) {
  return columns[u * 8 + t * 4 + threadIdx.x % 4];
}

}  // namespace mmssl::cuda::pipelined
#endif
