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
  const LaneRows rows(p, set, b);
  Sums<kFixed> sums{float(range.shift), {}, {}, {}};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.factor[h] = rows.of(p.inverse[set], h) * float(range.scale);
    sums.most[h] = kFixed ? -float(range.shift) : -INFINITY;
  }
  sum_rows<S>(p, set, b, m, sums);
  rows.store_sums(sums.most, sums.sum);
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

// The weights of the next product in place of the scores of a tile.
template <bool kFixed, class Tiles>
__device__ __forceinline__ void make_weights(uint32_t (&words)[4][4], Accumulator& s,
                                             const Weights& of_rows, const Tiles& tiles) {
  const int stage = tiles.turn.stage;
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    of_rows.apply<kFixed, true>(s[u], u, tiles.m.columns(stage), tiles.m.shifts(stage));
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

template <class S, bool kFixed, class P>
__device__ __forceinline__ void add_gradients(const P& p, int set, const Block& b, const Shared<S>& m,
                                              const Weights& of_rows,
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
    make_weights<kFixed>(words, s, of_rows, tiles);
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
  const LaneRows rows(p, set, b);
  const Weights of_rows(rows, range);
  Accumulator out[S::kPlanes];  // not defined where there are no tiles
  add_gradients<S, kFixed>(p, set, b, m, of_rows, out);
  const bool any = b.begin < b.end;
  rows.template store_gradients<S::kDepth>(
      [&](int f, int i) { return any ? out[f / 8][f / 2 % 4][f % 2][i] : 0.0f; });
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

void launch_warpgroups(const Problem<bf16, float>& p, bool backward, cudaStream_t stream) {
  namespace w = warpgroups;
  const unsigned blocks = p.first_block[kSets];
  const auto launch = [&](auto forward_shape, auto backward_shape) {
    using Forward = decltype(forward_shape);
    using Backward = decltype(backward_shape);
    if (backward) {
      MMSSL_LAUNCH_SHARED(w::grad_kernel<Backward>, blocks, w::kThreads, Backward::kBytes, stream, p);
    } else {
      MMSSL_LAUNCH_SHARED(w::sum_kernel<Forward>, blocks, w::kThreads, Forward::kBytes, stream, p);
    }
  };
  if (p.form_depth == 64) {
    launch(w::Shape<64, 8, 2>{}, w::Shape<64, 8, 2>{});
  } else if (p.form_depth == 128) {
    launch(w::Shape<128, 4, 2>{}, w::Shape<128, 8, 1>{});
  } else {
    launch(w::Shape<256, 4, 1>{}, w::Shape<256, 4, 1>{});
  }
}

}  // namespace mmssl::cuda::pipelined
