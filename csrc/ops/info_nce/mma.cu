// A block owns 128 rows, 16 a warp, whose products stay in registers, and streams the columns past
// them: tiles of 64, three in flight to shared memory. The weights of a gradient go from the
// registers that the scores are computed in straight into the next product, whose layout is the
// same. Only tiles on the diagonal and at the end of a set are masked.
#include <type_traits>

#include "ops/info_nce/panels.cuh"

namespace mmssl::cuda::pipelined {
namespace {

// kOwnShared: the rows of the block stay in shared memory, where the registers hold a wide result.
template <int kTerms_, int kDepth_, bool kOwnShared_ = false>
struct Shape {
  static constexpr int kTerms = kTerms_, kDepth = kDepth_;
  static constexpr bool kOwnShared = kOwnShared_;
  static constexpr int kStages = kOwnShared ? 2 : 3;  // tiles in flight or in use
  static constexpr int kSteps = kDepth / 16;   // of a product over the features
  static constexpr int kPitch = kDepth + 8;    // of a row in shared memory: no bank conflicts
  static constexpr int kPlane = kCols * kPitch, kTile = kTerms * kPlane;
  static constexpr int kOwnTile = kOwnShared ? 2 * kTile : 0;
  static constexpr int kBytes = kOwnTile * 2 + kStages * (kTile * 2 + kCols * 16);
};

// Starts to copy a tile of 64 rows of a panel.
template <class S>
__device__ __forceinline__ void copy_tile(const bf16* from, bf16* to) {
  constexpr int kChunks = S::kDepth / 8, kStep = kThreads / kChunks;
  const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks * 8;
#pragma unroll
  for (int n = 0; n < S::kTerms * kCols / kStep; ++n) {
    copy_async(to + (row + n * kStep) * S::kPitch + column, from + (threadIdx.x + n * kThreads) * 8);
  }
}

// The 16 rows of this warp, as operands of products over the features.
template <class S>
struct Own {
  using Words = uint32_t[4];
  const bf16* from;
  Words kept[S::kTerms][S::kOwnShared ? 1 : S::kSteps];

  // `rows`: 128 rows in two tiles of shared memory.
  __device__ __forceinline__ void load(const bf16* rows) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    from = rows + warp / 4 * S::kTile +
           (warp % 4 * 16 + lane / 8 % 2 * 8 + lane % 8) * S::kPitch + lane / 16 * 8;
    if constexpr (!S::kOwnShared) {
#pragma unroll
      for (int k = 0; k < S::kSteps; ++k) fetch(k);
    }
  }
  __device__ __forceinline__ void fetch(int k) {
#pragma unroll
    for (int term = 0; term < S::kTerms; ++term) {
      load_tiles<false>(kept[term][S::kOwnShared ? 0 : k], from + term * S::kPlane + k * 16);
    }
  }
  // The operand of step k, after fetch(k) in shared memory.
  __device__ __forceinline__ const Words& words(int term, int k) const {
    return kept[term][S::kOwnShared ? 0 : k];
  }
};

// Calls f(a, b) for the products of terms whose orders add up to less than kTerms, from the smallest
// on: those of order kLeast and above.
template <int kTerms, int kLeast, class F>
__device__ __forceinline__ void for_each_product(const F& f) {
#pragma unroll
  for (int order = kTerms - 1; order >= kLeast; --order) {
#pragma unroll
    for (int a = 0; a <= order; ++a) f(a, order - a);
  }
}

// Scores of the warp's rows and columns [16 u, 16 u + 16) of a tile.
template <class S>
__device__ __forceinline__ void multiply(float (&score)[2][4], Own<S>& own, const bf16* tile,
                                         int u) {
  const int lane = threadIdx.x % kWarp;
  const bf16* from =
      tile + (u * 16 + lane / 16 * 8 + lane % 8) * S::kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int i = 0; i < 8; ++i) score[i / 4][i % 4] = 0;
  const auto step = [&](int k, int terms, auto products) {
    uint32_t words[S::kTerms][4];
    if constexpr (S::kOwnShared) own.fetch(k);
#pragma unroll
    for (int term = 0; term < S::kTerms; ++term) {
      if (term < terms) load_tiles<false>(words[term], from + term * S::kPlane + k * 16);
    }
    products([&](int a, int b) {
      mma_bf16(score[0], own.words(a, k), {words[b][0], words[b][1]});
      mma_bf16(score[1], own.words(a, k), {words[b][2], words[b][3]});
    });
  };
  if constexpr (S::kTerms == 3) {
    // The large products last: tensor cores cut off the low bits of what is added.
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      step(k, 3, [](const auto& f) { for_each_product<3, 1>(f); });
    }
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) step(k, 1, [](const auto& f) { f(0, 0); });
  } else {
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      step(k, S::kTerms, [](const auto& f) { for_each_product<S::kTerms, 0>(f); });
    }
  }
}

// Calls visit(tile in shared memory, its columns, their shifts, mask) for the block's tiles. `base` is
// the dynamic shared memory. In the forward only anchors have positives.
template <class S, bool kShifts, bool kForward, class P, class Prepare, class Visit>
__device__ __forceinline__ void for_each_tile(const P& p, int set, const Block& b, char* base,
                                              const Prepare& prepare, const Visit& visit) {
  constexpr int kStages = S::kStages;
  bf16* const rows = reinterpret_cast<bf16*>(base);
  bf16* const tiles = rows + S::kOwnTile;
  ColumnPair* const columns = reinterpret_cast<ColumnPair*>(tiles + kStages * S::kTile);
  float* const shifts = reinterpret_cast<float*>(columns + kStages * kCols / 2);
  // The positives of the block's rows where these are anchors, else of the columns that are.
  int* const targets = reinterpret_cast<int*>(shifts + kStages * kCols);
  static_assert(kRows <= kStages * kCols);
  const bool targeted = p.target != nullptr;
  constexpr int64_t kInPanel = S::kTerms * kCols * S::kDepth;

  const bf16* own = p.panel[set] + (padded_first(p, set, b.pair) + b.first) / kCols * kInPanel;
  copy_tile<S>(own, rows);
  copy_tile<S>(own + kInPanel, rows + S::kTile);
  if (targeted && set == 0 && threadIdx.x < kRows / 4) {
    copy_async(targets + threadIdx.x * 4,
               p.padded_target + padded_first(p, 0, b.pair) + b.first + threadIdx.x * 4);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  prepare(rows);
  __syncthreads();  // what the rows occupied may be written again

  const auto copy = [&](const Cursor& at, int stage) {
    const int64_t row = padded_first(p, at.from.set, at.from.pair) + int64_t(at.tile) * kCols;
    copy_tile<S>(p.panel[at.from.set] + row / kCols * kInPanel, tiles + stage * S::kTile);
    if (threadIdx.x < kCols / 2) {
      copy_async(columns + stage * kCols / 2 + threadIdx.x,
                 p.column[at.from.set] + (row + threadIdx.x * 2) * 2);
    } else if (kShifts && threadIdx.x < kCols / 2 + kCols / 4) {
      const int n = threadIdx.x - kCols / 2;
      copy_async(shifts + stage * kCols + n * 4, p.column_shift[at.from.set] + row + n * 4);
    } else if (!kForward && targeted && set == 1 && threadIdx.x >= kThreads - kCols / 4) {
      const int n = threadIdx.x - (kThreads - kCols / 4);
      if (at.from.set == 0) copy_async(targets + stage * kCols + n * 4, p.padded_target + row + n * 4);
    }
  };
  Cursor ahead, now;
  bool more = ahead.next(p, set, b);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (more) {
      copy(ahead, stage);
      more = ahead.next(p, set, b);
    }
    commit_copies();
  }
  int stage = 0;
  while (now.next(p, set, b)) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the tile is there for all, and all are done with the one before
    if (more) {
      copy(ahead, stage == 0 ? kStages - 1 : stage - 1);
      more = ahead.next(p, set, b);
    }
    commit_copies();
    Leave leave = now.from.same_index ? Leave::kSameIndex : Leave::kNothing;
    if (targeted && now.from.same_index && now.from.set != set) {
      leave = kForward || set == 0 ? Leave::kPositivesOfRows : Leave::kPositivesOfColumns;
    }
    visit(tiles + stage * S::kTile, columns + stage * kCols / 2, shifts + stage * kCols,
          Mask{b, now.tile * kCols, now.from.count, leave,
               kForward || set == 0 ? targets : targets + stage * kCols});
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
}

// Adds the products of weights (16 rows, columns [16 u, 16 u + 16)) and the features of a tile.
template <class S>
__device__ __forceinline__ void multiply_weights(float (&out)[S::kDepth / 8][4],
                                                 const float (&g)[2][4], const bf16* tile, int u) {
  uint32_t weights[S::kTerms][4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {  // rows l / 4 and 8 below, then the next 8 columns
    uint32_t words[S::kTerms];
    split<S::kTerms>(g[n / 2][n % 2 * 2], g[n / 2][n % 2 * 2 + 1], words);
#pragma unroll
    for (int term = 0; term < S::kTerms; ++term) weights[term][n] = words[term];
  }
  const int lane = threadIdx.x % kWarp;
  const bf16* from =
      tile + (u * 16 + lane / 8 % 2 * 8 + lane % 8) * S::kPitch + lane / 16 * 8;
#pragma unroll
  for (int f = 0; f < S::kSteps; ++f) {
    uint32_t words[S::kTerms][4];
#pragma unroll
    for (int term = 0; term < S::kTerms; ++term) {
      load_tiles<true>(words[term], from + term * S::kPlane + f * 16);
    }
    if constexpr (S::kTerms == 3) {
      // The sum over all columns is added to in float32: a tensor core would cut off its addends.
      float sum[2][4] = {};
      for_each_product<3, 0>([&](int a, int b) {
        mma_bf16(sum[0], weights[a], {words[b][0], words[b][1]});
        mma_bf16(sum[1], weights[a], {words[b][2], words[b][3]});
      });
#pragma unroll
      for (int i = 0; i < 8; ++i) out[2 * f + i / 4][i % 4] += sum[i / 4][i % 4];
    } else {
      for_each_product<S::kTerms, 0>([&](int a, int b) {
        mma_bf16(out[2 * f], weights[a], {words[b][0], words[b][1]});
        mma_bf16(out[2 * f + 1], weights[a], {words[b][2], words[b][3]});
      });
    }
  }
}

template <class S, bool kFixed, class P>
__device__ __forceinline__ void sum_rows(const P& p, int set, const Block& b, char* base,
                                         float scale, float shift, const float (&inverse)[2],
                                         float (&most)[2], float (&sum)[2]) {
  const float factor[2] = {inverse[0] * scale, inverse[1] * scale};
  Own<S> own;
  for_each_tile<S, false, true>(
      p, set, b, base, [&](const bf16* rows) { own.load(rows); },
      [&](const bf16* tile, const ColumnPair* columns, const float*, const Mask& mask) {
        const bool masked = mask.any();
#pragma unroll(kFixed ? 4 : 1)
        for (int u = 0; u < kCols / 16; ++u) {
          float x[2][4];
          multiply<S>(x, own, tile, u);
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            ColumnPair column{};
            if constexpr (S::kTerms == 1) column = columns_of(columns, u, t);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float s = S::kTerms == 1 ? x[t][i] * column.inverse[i % 2] : x[t][i];
              if constexpr (kFixed) {
                x[t][i] = fast_exp2(fmaf(s, factor[i / 2], shift));
              } else {
                x[t][i] = s * factor[i / 2];
              }
            }
          }
          if (masked) mask.apply(u, kFixed ? 0.0f : -INFINITY, x);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            if constexpr (!kFixed) {
              float best = most[h];
#pragma unroll
              for (int n = 0; n < 4; ++n) {
                best = x[n / 2][2 * h + n % 2] > best ? x[n / 2][2 * h + n % 2] : best;
              }
              if (best > most[h]) {
                sum[h] *= fast_exp2(most[h] - best);
                most[h] = best;
              }
              if (most[h] == -INFINITY) continue;  // no entry yet: -inf - -inf is NaN
#pragma unroll
              for (int n = 0; n < 4; ++n) {
                x[n / 2][2 * h + n % 2] = fast_exp2(x[n / 2][2 * h + n % 2] - most[h]);
              }
            }
            sum[h] += (x[0][2 * h] + x[0][2 * h + 1]) + (x[1][2 * h] + x[1][2 * h + 1]);
          }
        }
      });
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads, S::kTerms* S::kDepth <= 128 ? 2 : 1)
    sum_kernel(const __grid_constant__ Problem<T, float> p) {
  MMSSL_DYNAMIC_SHARED(base);
  const int set = p.set_of_block(blockIdx.x);  // 1 in the second direction
  const Block b = block_of(p, set);
  const Range<float> range{double(*p.temperature)};
  const LaneRows rows(p, set, b);
  const float inverse[2] = {rows.of(p.inverse[set], 0), rows.of(p.inverse[set], 1)};
  const float least = range.fixed ? -float(range.shift) : -INFINITY;
  float most[2] = {least, least}, sum[2] = {};
  if (range.fixed) {
    sum_rows<S, true>(p, set, b, base, float(range.scale), float(range.shift), inverse, most, sum);
  } else {
    sum_rows<S, false>(p, set, b, base, float(range.scale), 0.0f, inverse, most, sum);
  }
  rows.store_sums(most, sum);
}

template <class S, bool kFixed, class P>
__device__ __forceinline__ void add_gradients(const P& p, int set, const Block& b, char* base,
                                              const Weights& of_rows,
                                              float (&out)[S::kDepth / 8][4]) {
  Own<S> own;
  for_each_tile<S, !kFixed, false>(
      p, set, b, base, [&](const bf16* rows) { own.load(rows); },
      [&](const bf16* tile, const ColumnPair* columns, const float* shifts, const Mask& mask) {
        const bool masked = mask.any();
#pragma unroll(!kFixed || S::kTerms == 3 ? 1 : 4)  // without spilling a register
        for (int u = 0; u < kCols / 16; ++u) {
          float x[2][4];
          multiply<S>(x, own, tile, u);
          of_rows.apply<kFixed, S::kTerms == 1>(x, u, columns, shifts);
          if (masked) mask.apply(u, 0.0f, x);
          multiply_weights<S>(out, x, tile, u);
        }
      });
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads, S::kTerms* S::kDepth <= 64 ? 2 : 1)
    grad_kernel(const __grid_constant__ Problem<T, float> p) {
  MMSSL_DYNAMIC_SHARED(base);
  const int set = p.set_of_block(blockIdx.x);
  const Block b = block_of(p, set);
  const Range<float> range{double(*p.temperature)};
  const LaneRows rows(p, set, b);
  const Weights of_rows(rows, range);
  float out[S::kDepth / 8][4] = {};
  if (range.fixed) {
    add_gradients<S, true>(p, set, b, base, of_rows, out);
  } else {
    add_gradients<S, false>(p, set, b, base, of_rows, out);
  }
  rows.template store_gradients<S::kDepth>([&](int f, int i) { return out[f][i]; });
}

// Calls f with the shape that a problem was laid out for.
template <class T, class F>
void with_shape(const Problem<T, float>& p, const F& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (p.form_depth == 64) return f(Shape<1, 64>{});
    if (p.form_depth == 128) return f(Shape<1, 128>{});
    return f(Shape<1, 256>{});
  } else {
    if (p.form_terms == 3) return f(Shape<3, 64>{});
    if (p.form_depth == 64) return f(Shape<2, 64>{});
    return f(Shape<2, 128>{});
  }
}

}  // namespace

template <class T>
void launch_tiles(const Problem<T, float>& p, bool backward, cudaStream_t stream) {
  with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    using Wide = Shape<S::kTerms, S::kDepth, (S::kTerms * S::kDepth > 192)>;  // of the backward
    constexpr int kMost = Form{S::kTerms, S::kDepth}.bytes();
    static_assert(S::kBytes <= kMost && Wide::kBytes <= kMost);
    const int64_t rows = padded(p.shape, 0) + padded(p.shape, 1) + padded(p.shape, 2);
    MMSSL_LAUNCH((panel_kernel<S::kTerms, S::kDepth, T>),
                 num_blocks(rows * (S::kDepth / 2), kThreads), kThreads, stream, p, backward);
    const unsigned blocks = p.first_block[kSets];
    if constexpr (std::is_same_v<T, bf16>) {
      if (p.warpgroups) return launch_warpgroups(p, backward, stream);
    }
    if (backward) {
      MMSSL_LAUNCH_SHARED((grad_kernel<Wide, T>), blocks, kThreads, Wide::kBytes, stream, p);
    } else {
      MMSSL_LAUNCH_SHARED((sum_kernel<S, T>), blocks, kThreads, S::kBytes, stream, p);
    }
  });
}

template void launch_tiles(const Problem<float, float>&, bool, cudaStream_t);
template void launch_tiles(const Problem<bf16, float>&, bool, cudaStream_t);

}  // namespace mmssl::cuda::pipelined
