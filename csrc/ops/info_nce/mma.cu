// A block owns 128 rows, 16 a warp, whose products stay in registers, and streams the columns past
// them: tiles of 64, three in flight to shared memory. The weights of a gradient go from the
// registers that the scores are computed in straight into the next product, whose layout is the
// same. Only tiles on the diagonal and at the end of a set are masked.
#include <type_traits>

#include "ops/info_nce/mma_tiles.cuh"

namespace mmssl::cuda::pipelined {
namespace {

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
