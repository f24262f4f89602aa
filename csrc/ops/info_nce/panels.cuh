// What the kernels on panels (mma.cu, wgmma_sm90a.cu) share: the rows of a block, its tiles of columns,
// masks, weights, and the kernel that fills the panels.
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
  int live;  // of the pair, see Problem
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
__device__ inline Columns source_of(const InfoNceShape& s, int set, int pair, int index, int live) {
  if (set == 2) {
    const bool has_anchors = index < s.pairs || s.symmetric;
    return {index < s.pairs ? 0 : 1, int(index % s.pairs), has_anchors ? int(s.n) : 0, false};
  }
  const Source from = source(s, set, pair, index, live);
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
      from = source_of(p.shape, rows_set, b.pair, source, b.live);
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
  b.live = set == 2 ? -1 : p.live(b.pair);
  const int64_t left = (b.live < 0 ? rows : b.live) - b.first;
  b.count = left < 0 ? 0 : left < kRows ? int(left) : kRows;
  int64_t total = 0;
  for (int n = 0; n < num_sources(p.shape, set) && b.count > 0; ++n) {
    total += ceil_div(source_of(p.shape, set, b.pair, n, b.live).count, kCols);
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

// The two rows of a block, 8 apart, of whose products a lane holds a part.
template <class P>
struct LaneRows {
  const P& p;
  const Block& b;
  int set, row;   // row: the first one, of the block's
  int64_t first;  // the block's first row, of the set's

  __device__ __forceinline__ LaneRows(const P& p_, int set_, const Block& b_)
      : p(p_), b(b_), set(set_), row(int(threadIdx.x) / kWarp * 16 + int(threadIdx.x) % kWarp / 4),
        first((set_ == 2 ? 0 : int64_t(b_.pair) * copy_rows(p_.shape, set_)) + b_.first) {}

  // An entry of an array with one for each of the set's rows; 0 behind the end.
  __device__ __forceinline__ float of(const float* array, int h) const {
    return row + 8 * h < b.count ? array[first + row + 8 * h] : 0.0f;
  }

  // Writes the sums of the rows, of which each of four lanes has a part, and the exponents that they are
  // relative to.
  __device__ __forceinline__ void store_sums(const float (&mosts)[2], const float (&sums)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = mosts[h], sum = sums[h];
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float its_most = __shfl_xor_sync(kAllLanes, most, mask);
        const float its_sum = __shfl_xor_sync(kAllLanes, sum, mask);
        const float both = its_most > most ? its_most : most;
        if (both != -INFINITY) sum = sum * exp2f(most - both) + its_sum * exp2f(its_most - both);
        most = both;
      }
      if (threadIdx.x % 4 != 0 || row + 8 * h >= b.count) continue;
      const int64_t at = (int64_t(b.split) * p.directions() + set) * p.rows(0) + first + row + 8 * h;
      p.part_max[at] = most;
      p.part_sum[at] = sum;
    }
  }

  // Writes value(f, i), entry i of the lane's four in columns [8 f, 8 f + 8).
  template <int kDepth, class F>
  __device__ __forceinline__ void store_gradients(const F& value) const {
#pragma unroll
    for (int f = 0; f < kDepth / 8; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t feature = f * 8 + threadIdx.x % 4 * 2 + i % 2;
        if (row + i / 2 * 8 >= b.count || feature >= p.shape.d) continue;
        p.parts(set, b.split)[(first + row + i / 2 * 8) * p.shape.d + feature] = value(f, i);
      }
    }
  }
};

// The two columns of n-tile t that this lane holds.
__device__ __forceinline__ ColumnPair columns_of(const ColumnPair* columns, int u, int t) {
  return columns[u * 8 + t * 4 + threadIdx.x % 4];
}

// What turns the scores of a lane's rows into weights of their columns' features.
struct Weights {
  float shift, factor[2], weight[2], own_shift[2];

  template <class P>
  __device__ __forceinline__ Weights(const LaneRows<P>& rows, const Range<float>& range)
      : shift(float(range.shift)) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[h] = rows.of(rows.p.inverse[rows.set], h) * float(range.scale);
      weight[h] = rows.of(rows.p.weight[rows.set], h);
      own_shift[h] = rows.of(rows.p.shift[rows.set], h);
    }
  }

  // For columns [16 u, 16 u + 16) of a tile; kScale: the scores lack 1 / norm of the columns.
  template <bool kFixed, bool kScale>
  __device__ __forceinline__ void apply(float (&x)[2][4], int u, const ColumnPair* columns,
                                        const float* shifts) const {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const ColumnPair column = columns_of(columns, u, t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float its_inverse = column.inverse[i % 2], its_weight = column.weight[i % 2];
        const int h = i / 2;
        const float s = kScale ? x[t][i] * its_inverse : x[t][i];
        if constexpr (kFixed) {
          x[t][i] = fast_exp2(fmaf(s, factor[h], shift)) * fmaf(weight[h], its_inverse, its_weight);
        } else {
          const float y = s * factor[h];
          const float its_shift = shifts[u * 16 + t * 8 + threadIdx.x % 4 * 2 + i % 2];
          x[t][i] = fast_exp2(y - own_shift[h]) * (weight[h] * its_inverse) +
                    fast_exp2(y - its_shift) * its_weight;
        }
      }
    }
  }
};

// Splits numbers into terms of bfloat16, packed in pairs: the first holds the most.
template <int kTerms>
__device__ __forceinline__ void split(float low, float high, uint32_t (&words)[kTerms]) {
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    words[term] = pack_bf16(low, high);
    if (term + 1 < kTerms) {
      low -= to_float(bf16{uint16_t(words[term])});
      high -= to_float(bf16{uint16_t(words[term] >> 16)});
    }
  }
}

// Where a feature of a padded row is in a panel for wgmma_sm90a.cu: of a line of 64 features, the pieces of
// 8 are permuted by the line.
template <int kDepth>
__device__ __forceinline__ int64_t warpgroup_entry(int64_t row, int64_t feature) {
  const int64_t line = (row / kCols * (kDepth / 64) + feature / 64) * kCols + row % kCols;
  return line * 64 + (feature % 64 / 8 ^ row % 8) * 8 + feature % 8;
}

// A thread per two features of a padded row.
template <int kTerms, int kDepth, class T>
__global__ void __launch_bounds__(kThreads)
    panel_kernel(const __grid_constant__ Problem<T, float> p, bool backward) {
  const int64_t thread = global_thread<kThreads>(), feature = thread % (kDepth / 2) * 2;
  int64_t row = thread / (kDepth / 2);
  int set = 0;
  for (; set < kSets && row >= padded(p.shape, set); ++set) row -= padded(p.shape, set);
  if (set == kSets) return;
  const int64_t count = copy_rows(p.shape, set), whole = ceil_div(count, kRows) * kRows;
  const int there = set == 2 ? -1 : p.live(row / whole);
  const bool live = row % whole < (there < 0 ? count : there);
  const int64_t from = row / whole * count + row % whole;
  float value[2] = {};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (live && feature + n < p.shape.d) value[n] = widen(p.z[set][from * p.shape.d + feature + n]);
  }
  uint32_t words[kTerms];
  split<kTerms>(value[0], value[1], words);
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    bf16* to = p.panel[set] + (p.warpgroups ? warpgroup_entry<kDepth>(row, feature)
                                            : ((row / kCols * kTerms + term) * kCols + row % kCols) * kDepth + feature);
    *reinterpret_cast<uint32_t*>(to) = words[term];
  }
  if (feature != 0) return;
  const float inverse = live ? p.inverse[set][from] : 0.0f;
  float* const column = p.column[set] + row / 2 * 4 + row % 2;  // of a ColumnPair
  column[0] = inverse;
  if (set == 0 && p.target != nullptr) p.padded_target[row] = live ? int(p.target[from]) : -1;
  column[2] = live && backward ? p.weight[set][from] * inverse : 0.0f;
  if (backward) p.column_shift[set][row] = live ? p.shift[set][from] : 0.0f;
}

}  // namespace mmssl::cuda::pipelined
#endif
