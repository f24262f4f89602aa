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
  const int64_t first = int64_t(b.pair) * p.shape.n + b.first;  // M = N in a second direction
  const Range<float> range{double(*p.temperature)};
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;
  float inverse[2], most[2], sum[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    inverse[h] = row + 8 * h < b.count ? p.inverse[set][first + row + 8 * h] : 0.0f;
    most[h] = range.fixed ? -float(range.shift) : -INFINITY;
  }
  if (range.fixed) {
    sum_rows<S, true>(p, set, b, base, float(range.scale), float(range.shift), inverse, most, sum);
  } else {
    sum_rows<S, false>(p, set, b, base, float(range.scale), 0.0f, inverse, most, sum);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int mask = 1; mask <= 2; mask *= 2) {
      const float its_most = __shfl_xor_sync(kAllLanes, most[h], mask);
      const float its_sum = __shfl_xor_sync(kAllLanes, sum[h], mask);
      const float both = its_most > most[h] ? its_most : most[h];
      if (both != -INFINITY) {
        sum[h] = sum[h] * exp2f(most[h] - both) + its_sum * exp2f(its_most - both);
      }
      most[h] = both;
    }
    if (lane % 4 == 0 && row + 8 * h < b.count) {
      const int64_t at =
          (int64_t(b.split) * p.directions() + set) * p.rows(0) + first + row + 8 * h;
      p.part_max[at] = most[h];
      p.part_sum[at] = sum[h];
    }
  }
}

template <class S, bool kFixed, class P>
__device__ __forceinline__ void add_gradients(const P& p, int set, const Block& b, char* base,
                                              float scale, float shift, const float (&inverse)[2],
                                              const float (&weight)[2], const float (&shifts)[2],
                                              float (&out)[S::kDepth / 8][4]) {
  const float factor[2] = {inverse[0] * scale, inverse[1] * scale};
  Own<S> own;
  for_each_tile<S, !kFixed, false>(
      p, set, b, base, [&](const bf16* rows) { own.load(rows); },
      [&](const bf16* tile, const ColumnPair* columns, const float* column_shift, const Mask& mask) {
        const bool masked = mask.any();
#pragma unroll(!kFixed || S::kTerms == 3 ? 1 : 4)  // without spilling a register
        for (int u = 0; u < kCols / 16; ++u) {
          float x[2][4];
          multiply<S>(x, own, tile, u);
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            const ColumnPair column = columns_of(columns, u, t);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float its_inverse = column.inverse[i % 2], its_weight = column.weight[i % 2];
              const int h = i / 2;
              const float s = S::kTerms == 1 ? x[t][i] * its_inverse : x[t][i];
              if constexpr (kFixed) {
                x[t][i] = fast_exp2(fmaf(s, factor[h], shift)) * fmaf(weight[h], its_inverse, its_weight);
              } else {
                const float y = s * factor[h];
                const float its_shift = column_shift[u * 16 + t * 8 + threadIdx.x % 4 * 2 + i % 2];
                x[t][i] = fast_exp2(y - shifts[h]) * (weight[h] * its_inverse) +
                          fast_exp2(y - its_shift) * its_weight;
              }
            }
          }
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
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;
  const int64_t first = (set == 2 ? 0 : int64_t(b.pair) * copy_rows(p.shape, set)) + b.first;
  float inverse[2] = {}, weight[2] = {}, shift[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= b.count) continue;
    inverse[h] = p.inverse[set][first + row + 8 * h];
    weight[h] = p.weight[set][first + row + 8 * h];
    shift[h] = p.shift[set][first + row + 8 * h];
  }
  float out[S::kDepth / 8][4] = {};
  if (range.fixed) {
    add_gradients<S, true>(p, set, b, base, float(range.scale), float(range.shift), inverse, weight,
                           shift, out);
  } else {
    add_gradients<S, false>(p, set, b, base, float(range.scale), 0.0f, inverse, weight, shift, out);
  }
#pragma unroll
  for (int f = 0; f < S::kDepth / 8; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t feature = f * 8 + lane % 4 * 2 + i % 2;
      if (row + i / 2 * 8 >= b.count || feature >= p.shape.d) continue;
      p.parts(set, b.split)[(first + row + i / 2 * 8) * p.shape.d + feature] = out[f][i];
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
  const bool live = row % whole < count;
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
void launch_panels(const Problem<T, float>& p, bool backward, cudaStream_t stream) {
  with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    const int64_t rows = padded(p.shape, 0) + padded(p.shape, 1) + padded(p.shape, 2);
    const int64_t threads = rows * (S::kDepth / 2);
    MMSSL_LAUNCH((panel_kernel<S::kTerms, S::kDepth, T>), num_blocks(threads, kThreads), kThreads,
                 stream, p, backward);
  });
}

template <class T>
void launch_sums(const Problem<T, float>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (p.warpgroups) return launch_warpgroup_sums(p, stream);
  }
  with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    static_assert(S::kBytes <= Form{S::kTerms, S::kDepth}.bytes());
    MMSSL_LAUNCH_SHARED((sum_kernel<S, T>), p.first_block[kSets], kThreads, S::kBytes, stream, p);
  });
}

template <class T>
void launch_gradients(const Problem<T, float>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (p.warpgroups) return launch_warpgroup_gradients(p, stream);
  }
  with_shape(p, [&](auto shape) {
    using S0 = decltype(shape);
    using S = Shape<S0::kTerms, S0::kDepth, (S0::kTerms * S0::kDepth > 192)>;
    static_assert(S::kBytes <= Form{S::kTerms, S::kDepth}.bytes());
    MMSSL_LAUNCH_SHARED((grad_kernel<S, T>), p.first_block[kSets], kThreads, S::kBytes, stream, p);
  });
}

#define MMSSL_INSTANTIATE(T)                                                               \
  template void launch_panels(const Problem<T, float>&, bool, cudaStream_t);               \
  template void launch_sums(const Problem<T, float>&, cudaStream_t);                       \
  template void launch_gradients(const Problem<T, float>&, cudaStream_t);
MMSSL_INSTANTIATE(float)
MMSSL_INSTANTIATE(bf16)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda::pipelined
