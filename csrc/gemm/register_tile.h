// Products of tiles in registers, which info_nce, masked_topk and the dense products share, and
// what belongs to them: transposed panels, masks at the edges, sums over lanes.
#pragma once
#include <algorithm>
#include <type_traits>

#include "common/simd.h"

namespace mmssl::cpu {

// One step of transposing an L x L block in L vectors: swaps off-diagonal blocks of kStep.
template <class A, int L, int kStep>
MMSSL_INLINE void transpose_step(Vec<A, L> (&v)[L]) {
  using Index = Vec<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>, L>;
  Index low, high;
  for (int lane = 0; lane < L; ++lane) {
    const bool second = (lane & kStep) != 0;
    low[lane] = second ? L + lane - kStep : lane;
    high[lane] = second ? L + lane : lane + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & kStep) continue;
    const Vec<A, L> a = v[i], b = v[i + kStep];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + kStep] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * kStep < L) transpose_step<A, L, 2 * kStep>(v);
}

// out (panels, d, kPanel) from z (rows, ld), ld a multiple of L and rows of kPanel: a panel holds
// kPanel rows, transposed.
template <class A, int L, int kPanel>
MMSSL_INLINE void make_panels(const A* z, int64_t rows, int64_t d, int64_t ld, A* out) {
  for (int64_t j = 0; j < rows; j += L) {
    A* const panel = out + j / kPanel * kPanel * d + j % kPanel;
    for (int64_t k = 0; k < d; k += L) {
      Vec<A, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load<A, L>(z + (j + i) * ld + k);
      transpose_step<A, L, 1>(block);
      if (k + L <= d) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store<A, L>(panel + (k + i) * kPanel, block[i]);
      } else {
        for (int64_t i = 0; k + i < d; ++i) store<A, L>(panel + (k + i) * kPanel, block[i]);
      }
    }
  }
}

// The build disables contraction everywhere else; here a * b + c must be one instruction.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Register tiles of kRows x kVecs vectors; of results that are added in memory kRowsOut x kVecsOut.
// Each should fill the register file without spilling: 32 registers with AVX-512, else 16.
template <class A_, int kLanes_, int kRows_, int kVecs_, int kRowsOut_ = kRows_,
          int kVecsOut_ = kVecs_>
struct Shape {
  using A = A_;   // of sums
  using In = A_;  // of operands
  using V = Vec<A, kLanes_>;
  static constexpr int kLanes = kLanes_, kRows = kRows_, kVecs = kVecs_;
  static constexpr int kRowsOut = kRowsOut_, kVecsOut = kVecsOut_;
  static constexpr int kPanel = kLanes * kVecs;  // columns

  static MMSSL_INLINE A broadcast(A x) { return x; }
  static MMSSL_INLINE V multiply_add(V sum, A x, V column) { return sum + x * column; }
};

// c (kRows x kVecs vectors) = [c +] a b: a[r * row_step + k * k_step] times vectors b[k * ldb].
// The product is summed on its own and added last, which keeps rounding errors small.
template <class S, int kRows, int kVecs, bool kAdd>
MMSSL_INLINE void multiply(const typename S::In* a, int64_t row_step, int64_t k_step,
                           const typename S::In* b, int64_t ldb, int64_t depth, typename S::A* c,
                           int64_t ldc) {
  using A = typename S::A;
  constexpr int L = S::kLanes;
  typename S::V sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<typename S::In, L> column[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) column[v] = load<typename S::In, L>(b + k * ldb + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto x = S::broadcast(a[r * row_step + k * k_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[r][v] = S::multiply_add(sum[r][v], x, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      A* out = c + r * ldc + v * L;
      if constexpr (kAdd) sum[r][v] += load<A, L>(out);
      store<A, L>(out, sum[r][v]);
    }
  }
}

// kRowsOut rows of a result, all columns: c += a b, at most kVecsOut vectors at a time.
template <class S>
MMSSL_INLINE void add_product(const typename S::In* a, int64_t row_step, int64_t k_step,
                              const typename S::In* b, int64_t depth, typename S::A* c, int64_t ld) {
  constexpr int R = S::kRowsOut, W = S::kVecsOut, L = S::kLanes;
  int64_t k = 0;
  for (; k + W * L <= ld; k += W * L) {
    multiply<S, R, W, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
  }
  if constexpr (W > 3) {
    if (k + 3 * L <= ld) {
      multiply<S, R, 3, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
      k += 3 * L;
    }
  }
  if constexpr (W > 2) {
    if (k + 2 * L <= ld) {
      multiply<S, R, 2, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
      k += 2 * L;
    }
  }
  if (k < ld) multiply<S, R, 1, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
}

// The sum of the lanes in double: neighbors in pairs, then in fours and so on.
template <class A, int kLanes>
MMSSL_INLINE double sum_lanes(const Vec<A, kLanes>& v) {
  const A* lanes = reinterpret_cast<const A*>(&v);
  if constexpr (kLanes >= 8) {
    Vec<double, 8> sum = __builtin_convertvector(load<A, 8>(lanes), Vec<double, 8>);
    if constexpr (kLanes == 16) {
      sum += __builtin_convertvector(load<A, 8>(lanes + 8), Vec<double, 8>);
    }
    sum += __builtin_shuffle(sum, Vec<int64_t, 8>{4, 5, 6, 7, 0, 1, 2, 3});
    sum += __builtin_shuffle(sum, Vec<int64_t, 8>{2, 3, 0, 1, 6, 7, 4, 5});
    return sum[0] + sum[1];
  } else {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }
}

// All bits set in the lanes before n, which may lie outside the vector.
template <class Bits, int kLanes>
MMSSL_INLINE Vec<Bits, kLanes> lanes_before(int64_t n) {
  static constexpr Bits kOnes[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const int64_t count = n < 0 ? 0 : n < kLanes ? n : kLanes;
  return load<Bits, kLanes>(kOnes + 16 - count);
}

// e where column j + lane of row i lies within the rows and columns, else zero. no_diagonal leaves
// out i == j, or with kUpper everything but i < j.
template <class A, int kLanes, bool kUpper>
MMSSL_INLINE Vec<A, kLanes> counted(Vec<A, kLanes> e, int64_t i, int64_t j, int64_t rows,
                                    int64_t cols, bool no_diagonal) {
  using Bits = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  auto mask = lanes_before<Bits, kLanes>(i < rows ? cols - j : 0);
  if (no_diagonal) {
    auto left_out = lanes_before<Bits, kLanes>(i + 1 - j);
    if constexpr (!kUpper) left_out &= ~lanes_before<Bits, kLanes>(i - j);
    mask &= ~left_out;
  }
  return reinterpret_cast<Vec<A, kLanes>>(reinterpret_cast<Vec<Bits, kLanes>>(e) & mask);
}

#if defined(__x86_64__)
// bfloat16: a word holds two numbers, which are multiplied and added at once. Instructions are
// inline assembly, because intrinsics can't be inlined into a body that several levels share.
struct WordShape {
  using A = float;
  using In = uint32_t;
  using V = Vec<float, 16>;
  static constexpr int kLanes = 16, kRowsOut = 4, kVecsOut = 4;

  // As an expression of vectors, gcc 12 may insert the 16 lanes one by one: a third of the speed.
  static MMSSL_INLINE Vec<uint32_t, 16> broadcast(const uint32_t& x) {
    Vec<uint32_t, 16> v;
    asm("vpbroadcastd %1, %0" : "=v"(v) : "m"(x));
    return v;
  }
  static MMSSL_INLINE V multiply_add(V sum, Vec<uint32_t, 16> x, Vec<uint32_t, 16> column) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(column));
    return sum;
  }
};

// The numbers of two vectors in bfloat16.
MMSSL_INLINE Vec<uint16_t, 32> narrow_two(Vec<float, 16> low, Vec<float, 16> high) {
  Vec<uint16_t, 32> out;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(out) : "v"(low), "v"(high));
  return out;
}

// AMX: tiles 0 to 3 hold sums (16 x 16 float32), 4 and 5 operands (16 rows of 32 numbers).
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};
#define MMSSL_LOAD_TILE(number, from, stride)                                          \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #number ::"r"(from), "r"(int64_t(stride)) : "memory")
#define MMSSL_STORE_TILE(number, to, stride)                                           \
  asm volatile("tilestored %%tmm" #number ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define MMSSL_MULTIPLY_TILES(sum, a, b) \
  asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

// c (16 rows of each of up to four tiles, 16 columns each) += a b; a and b advance from tile to
// tile.
MMSSL_INLINE void add_tiles(int64_t tiles, const char* a, int64_t a_stride, int64_t a_next,
                            int64_t a_step, const char* b, int64_t b_stride, int64_t b_next,
                            int64_t b_step, int64_t steps, float* c, int64_t c_stride,
                            int64_t c_next) {
#define MMSSL_EACH(body)                                        \
  body(0) if (tiles > 1) body(1) if (tiles > 2) body(2) if (tiles > 3) body(3)
#define MMSSL_BODY(n) MMSSL_LOAD_TILE(n, c + n * c_next, c_stride);
  MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
  for (int64_t k = 0; k < steps; ++k) {
    if (a_next == 0) MMSSL_LOAD_TILE(4, a + k * a_step, a_stride);
    if (b_next == 0) MMSSL_LOAD_TILE(5, b + k * b_step, b_stride);
#define MMSSL_BODY(n)                                                               \
  {                                                                                 \
    if (a_next != 0) MMSSL_LOAD_TILE(4, a + n * a_next + k * a_step, a_stride);     \
    if (b_next != 0) MMSSL_LOAD_TILE(5, b + n * b_next + k * b_step, b_stride);     \
    MMSSL_MULTIPLY_TILES(n, 4, 5);                                                  \
  }
    MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
  }
#define MMSSL_BODY(n) MMSSL_STORE_TILE(n, c + n * c_next, c_stride);
  MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
#undef MMSSL_EACH
}

// c (16 rows, `columns` of a panel of kWordPanel) = a b: `depth` words of each row of a, a multiple
// of 16, times a panel transposed as make_panels does it. With AMX always the whole panel is
// written.
constexpr int64_t kWordPanel = 48;
template <Bf16Unit kUnit>
MMSSL_INLINE void multiply_panel(const uint32_t* a, const uint32_t* b, int64_t depth,
                                 int64_t columns, float* c, int64_t ldc) {
  if constexpr (kUnit == Bf16Unit::kAmx) {
    asm volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2" ::);
    for (int64_t k = 0; k < depth; k += 16) {
      MMSSL_LOAD_TILE(4, a + k, depth * 4);
      MMSSL_LOAD_TILE(5, b + k * kWordPanel, kWordPanel * 4);
      MMSSL_MULTIPLY_TILES(0, 4, 5);
      MMSSL_LOAD_TILE(5, b + k * kWordPanel + 16, kWordPanel * 4);
      MMSSL_MULTIPLY_TILES(1, 4, 5);
      MMSSL_LOAD_TILE(5, b + k * kWordPanel + 32, kWordPanel * 4);
      MMSSL_MULTIPLY_TILES(2, 4, 5);
    }
    MMSSL_STORE_TILE(0, c, ldc * 4);
    MMSSL_STORE_TILE(1, c + 16, ldc * 4);
    MMSSL_STORE_TILE(2, c + 32, ldc * 4);
  } else {
    for (int64_t r = 0; r < 16; r += 8, a += 8 * depth, c += 8 * ldc) {
      if (columns >= kWordPanel) {
        multiply<WordShape, 8, 3, false>(a, depth, 1, b, kWordPanel, depth, c, ldc);
      } else if (columns >= 32) {
        multiply<WordShape, 8, 2, false>(a, depth, 1, b, kWordPanel, depth, c, ldc);
      } else {
        multiply<WordShape, 8, 1, false>(a, depth, 1, b, kWordPanel, depth, c, ldc);
      }
    }
  }
}
#endif
#pragma GCC pop_options

// Words are moved as they are, whatever numbers they would be.
MMSSL_INLINE void make_word_panels(const uint32_t* words, int64_t rows, int64_t depth,
                                   uint32_t* out) {
  make_panels<int32_t, 16, 48>(reinterpret_cast<const int32_t*>(words), rows, depth, depth,
                               reinterpret_cast<int32_t*>(out));
}

// pairs (rows / 2, ld): the numbers of two rows of z (rows, width) in one word.
MMSSL_INLINE void interleave_rows(const bf16* z, int64_t rows, int64_t width, int64_t ld,
                                  uint32_t* pairs) {
  for (int64_t i = 0; i < rows; i += 2, z += 2 * width, pairs += ld) {
    for (int64_t k = 0; k < ld; ++k) {
      pairs[k] = uint32_t(z[k].bits) | uint32_t(z[width + k].bits) << 16;
    }
  }
}

}  // namespace mmssl::cpu
