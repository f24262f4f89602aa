// The kernels of mma.cu for compute capability 9.0, in bfloat16. A block owns 128 rows, 64 for each of two
// warpgroups. Tiles of 64 columns arrive in a ring (cp.async.bulk, mbarriers), where wgmma reads them.
// Products of one warpgroup run while others form exponentials; the weights of a gradient go from
// registers into the next product. Compiled for sm_90a only, and chosen at run time.
#include "ops/info_nce/wgmma_tiles.cuh"

namespace mmssl::cuda::pipelined::warpgroups {
namespace {

// How many of 32 exponentials are polynomials in the forward: with 3, issuing instructions takes as long
// as the other exponentials, of which a multiprocessor forms 16 a clock. The gradient needs no polynomials.
constexpr int kPolynomials = 3;

// 2^x for entry n of the 32 of a tile.
__device__ __forceinline__ float exp2_of_entry(int n, float x) {
  const bool by_polynomial = (n + 1) * kPolynomials / 32 > n * kPolynomials / 32;
  return by_polynomial ? polynomial_exp2<4>(x) : fast_exp2(x);
}

template <bool kFixed>
struct Sums {
  float shift, factor[2], most[2], sum[2];

  template <class Tiles>
  __device__ __forceinline__ void add(Accumulator& s, const Tiles& tiles) {
    const ColumnPair* const columns = tiles.m.columns(tiles.turn.stage);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const ColumnPair column = columns_of(columns, u, t);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = s[u][t][i];
          x = x * column.inverse[i % 2];
          if constexpr (kFixed) {
            x = exp2_of_entry(u * 8 + t * 4 + i, fmaf(x, factor[i / 2], shift));
          } else {
            x = x * factor[i / 2];
          }
        }
      }
    }
    tiles.masked([&](const Mask& mask) {
#pragma unroll
      for (int u = 0; u < 4; ++u) mask.apply(u, kFixed ? 0.0f : -INFINITY, s[u]);
    });
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (!kFixed) {
        float best = most[h];
        for_each_of_row(s, h, [&](float& x) { best = x > best ? x : best; });
        if (best == -INFINITY) continue;  // no entry yet: -inf - -inf is NaN
        sum[h] *= fast_exp2(most[h] - best);
        most[h] = best;
        for_each_of_row(s, h, [&](float& x) { x = fast_exp2(x - best); });
      }
      // Pairs first: a shorter chain, and smaller errors.
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        sum[h] += (s[u][0][2 * h] + s[u][0][2 * h + 1]) + (s[u][1][2 * h] + s[u][1][2 * h + 1]);
      }
    }
  }
  template <class F>
  static __device__ __forceinline__ void for_each_of_row(Accumulator& s, int h, const F& f) {
#pragma unroll
    for (int n = 0; n < 16; ++n) f(s[n / 4][n / 2 % 2][2 * h + n % 2]);
  }
};

template <class S, bool kFixed, class P>
__device__ __forceinline__ void sum_rows(const P& p, int set, const Block& b, const Shared<S>& m,
                                         Sums<kFixed>& sums) {
  Tiles<S, P> tiles(p, b, m, set, true, false);
  Own<S> own;
  own.load(m);
#pragma unroll 1
  for (int n = tiles.count(); n > 0; --n) {
    Accumulator s;
    start_scores<S>(s, own, tiles.wait());
    wait_for_products<0>();
    pin(s);
    sums.add(s, tiles);
    tiles.release(tiles.turn.stage);
    tiles.turn.next();
  }
}

template <class S, bool kFixed, class P>
__device__ __forceinline__ void store_sums(const P& p, int set, const Block& b, const Shared<S>& m,
                                           const Range<float>& range) {
  const int64_t first = int64_t(b.pair) * p.shape.n + b.first;  // M = N in a second direction
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;
  Sums<kFixed> sums{float(range.shift), {}, {}, {}};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float inverse = row + 8 * h < b.count ? p.inverse[set][first + row + 8 * h] : 0.0f;
    sums.factor[h] = inverse * float(range.scale);
    sums.most[h] = kFixed ? -float(range.shift) : -INFINITY;
  }
  sum_rows<S>(p, set, b, m, sums);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = sums.most[h], sum = sums.sum[h];
    for (int mask = 1; mask <= 2; mask *= 2) {
      const float its_most = __shfl_xor_sync(kAllLanes, most, mask);
      const float its_sum = __shfl_xor_sync(kAllLanes, sum, mask);
      const float both = its_most > most ? its_most : most;
      if (both != -INFINITY) sum = sum * exp2f(most - both) + its_sum * exp2f(its_most - both);
      most = both;
    }
    if (lane % 4 == 0 && row + 8 * h < b.count) {
      const int64_t at = (int64_t(b.split) * p.directions() + set) * p.rows(0) + first + row + 8 * h;
      p.part_max[at] = most;
      p.part_sum[at] = sum;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    sum_kernel(const __grid_constant__ Problem<bf16, float> p) {
  MMSSL_DYNAMIC_SHARED(base);
  const int set = p.set_of_block(blockIdx.x);  // 1 in the second direction
  const Shared<S> m{base};
  const Block b = block_of(p, set);
  const Range<float> range{double(*p.temperature)};
  m.init();
  if (range.fixed) {
    store_sums<S, true>(p, set, b, m, range);
  } else {
    store_sums<S, false>(p, set, b, m, range);
  }
}

template <bool kFixed>
struct Weights {
  float shift, factor[2], weight[2], own_shift[2];

  // The weights of a tile's columns in the gradient of the rows, as operands of the next product.
  template <class Tiles>
  __device__ __forceinline__ void make(uint32_t (&words)[4][4], Accumulator& s, const Tiles& tiles) const {
    const ColumnPair* const columns = tiles.m.columns(tiles.turn.stage);
    const float* const shifts = tiles.m.shifts(tiles.turn.stage);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const ColumnPair column = columns_of(columns, u, t);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float its_inverse = column.inverse[i % 2], its_weight = column.weight[i % 2];
          const int h = i / 2;
          float& x = s[u][t][i];
          x *= its_inverse;
          if constexpr (kFixed) {
            x = fast_exp2(fmaf(x, factor[h], shift)) * fmaf(weight[h], its_inverse, its_weight);
          } else {
            const float y = x * factor[h];
            x = fast_exp2(y - own_shift[h]) * (weight[h] * its_inverse) +
                fast_exp2(y - shifts[u * 16 + t * 8 + threadIdx.x % 4 * 2 + i % 2]) * its_weight;
          }
        }
      }
    }
    tiles.masked([&](const Mask& mask) {
#pragma unroll
      for (int u = 0; u < 4; ++u) mask.apply(u, 0.0f, s[u]);
    });
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      words[n / 4][n % 4] = pack_bf16(s[n / 4][n / 2 % 2][n % 2 * 2], s[n / 4][n / 2 % 2][n % 2 * 2 + 1]);
    }
  }
};

template <class S, bool kFixed, class P>
__device__ __forceinline__ void add_gradients(const P& p, int set, const Block& b, const Shared<S>& m,
                                              const Weights<kFixed>& of_rows,
                                              Accumulator (&out)[S::kPlanes]) {
  Tiles<S, P> tiles(p, b, m, set, false, !kFixed);
  Own<S> own;
  own.load(m);
  int before = 0;  // the stage of the tile before
#pragma unroll 1
  for (int n = 0; n < tiles.count(); ++n) {
    Accumulator s;
    uint32_t words[4][4];
    const Address tile = tiles.wait();
    start_scores<S>(s, own, tile);
    wait_for_products<0>();  // for the gradient of the tile before, too
    pin(s);
    if (n > 0) tiles.release(before);
    of_rows.make(words, s, tiles);
    start_gradients<S>(out, words, tile, n > 0);
    before = tiles.turn.stage;
    tiles.turn.next();
  }
  wait_for_products<0>();
#pragma unroll
  for (int f = 0; f < S::kPlanes; ++f) pin(out[f]);
}

template <class S, bool kFixed, class P>
__device__ __forceinline__ void store_gradients(const P& p, int set, const Block& b, const Shared<S>& m,
                                                const Range<float>& range) {
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;
  const int64_t first = (set == 2 ? 0 : int64_t(b.pair) * copy_rows(p.shape, set)) + b.first;
  Weights<kFixed> of_rows{float(range.shift), {}, {}, {}};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= b.count) continue;
    of_rows.factor[h] = p.inverse[set][first + row + 8 * h] * float(range.scale);
    of_rows.weight[h] = p.weight[set][first + row + 8 * h];
    of_rows.own_shift[h] = p.shift[set][first + row + 8 * h];
  }
  Accumulator out[S::kPlanes];  // not defined where there are no tiles
  add_gradients<S>(p, set, b, m, of_rows, out);
#pragma unroll
  for (int f = 0; f < S::kDepth / 8; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t feature = f * 8 + lane % 4 * 2 + i % 2;
      if (row + i / 2 * 8 >= b.count || feature >= p.shape.d) continue;
      p.parts(set, b.split)[(first + row + i / 2 * 8) * p.shape.d + feature] =
          b.begin < b.end ? out[f / 8][f / 2 % 4][f % 2][i] : 0.0f;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    grad_kernel(const __grid_constant__ Problem<bf16, float> p) {
  MMSSL_DYNAMIC_SHARED(base);
  const int set = p.set_of_block(blockIdx.x);
  const Shared<S> m{base};
  const Block b = block_of(p, set);
  const Range<float> range{double(*p.temperature)};
  m.init();
  if (range.fixed) {
    store_gradients<S, true>(p, set, b, m, range);
  } else {
    store_gradients<S, false>(p, set, b, m, range);
  }
}

}  // namespace
}  // namespace mmssl::cuda::pipelined::warpgroups

namespace mmssl::cuda::pipelined {

namespace {

// Calls f with the shape for a depth.
template <int kBlocksAt128, class F>
void with_shape(int depth, const F& f) {
  if (depth == 64) return f(warpgroups::Shape<64, 8, 2>{});
  if (depth == 128) return f(warpgroups::Shape<128, kBlocksAt128 == 2 ? 4 : 8, kBlocksAt128>{});
  f(warpgroups::Shape<256, 4, 1>{});
}

}  // namespace

void launch_warpgroup_sums(const Problem<bf16, float>& p, cudaStream_t stream) {
  with_shape<2>(p.form_depth, [&](auto shape) {
    using S = decltype(shape);
    MMSSL_LAUNCH_SHARED(warpgroups::sum_kernel<S>, p.first_block[kSets], warpgroups::kThreads, S::kBytes,
                        stream, p);
  });
}

void launch_warpgroup_gradients(const Problem<bf16, float>& p, cudaStream_t stream) {
  with_shape<1>(p.form_depth, [&](auto shape) {
    using S = decltype(shape);
    MMSSL_LAUNCH_SHARED(warpgroups::grad_kernel<S>, p.first_block[kSets], warpgroups::kThreads, S::kBytes,
                        stream, p);
  });
}

}  // namespace mmssl::cuda::pipelined
