// The stream of tiles of columns and the products of the kernels with mma.sync. Included by mma.cu only.
#pragma once
#include "ops/info_nce/panels.cuh"

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda::pipelined {
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

}  // namespace mmssl::cuda::pipelined
#endif
