// One tile of the similarity matrix: rows of one chunk against rows of another, in registers and the
// first two cache levels, with what the forward or the backward wants of it. Legend as in info_nce.h;
// P are the rows of a tile, Q its columns.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/exp2.h"

namespace mmssl::cpu {

// Rows of a chunk. A tile of two chunks is one task: large enough to be worth handing out, small
// enough that its operands stay in the second-level cache. Both are multiples of every register
// tile below.
constexpr int64_t kMaxChunk = 192, kMinChunk = 96;

// How exponents are kept in range. kFixed: one shift for all (cosines are bounded). kShifted: one
// shift per row, for temperatures where that would leave the range of A.
enum class Shift { kFixed, kShifted };

template <class A>
struct Tile {
  const A* p;    // rows of P, `ld` apart, normalised, zero-padded
  const A* q;    // rows of Q
  const A* q_t;  // the same in panels of kPanel rows, transposed: [panel][d][kPanel]
  int64_t rows, cols, d, ld;
  bool same_rows;  // P and Q are one chunk of one set: i == j is left out
  A scale;         // log2(e) / t
  A shift;         // kFixed: e_ij = exp2(scale * s_ij + shift)
  const A *p_shift, *q_shift;  // kShifted: subtracted from scale * s_ij, per row and per column

  // Forward. Sums (or maxima of scale * s) are added to these; q_* is null where columns don't count.
  // Of a chunk with itself the sums of rows and of columns go to the same place.
  double *p_sum, *q_sum;
  A *p_max, *q_max;
  double* positive;  // s_ii, where the diagonal holds the positives

  // Backward: g_ij = e_ij * (p_weight_i + q_weight_j). Adds g Q to p_grad and g^T P to q_grad, which
  // is null if same_rows; q_weight may be null. Where the diagonal holds the positives, g_ii is left
  // out and added to diagonal_i instead: it is the largest entry and nearly cancels, so it is kept
  // exact and applied last.
  const A *p_weight, *q_weight;
  A* diagonal;
  A *p_grad, *q_grad;
};

// Register tiles: kRows x kVecs vectors of scores, kRowsOut x kVecsOut of gradients.
template <class A_, int kLanes_, int kRows_, int kVecs_, int kRowsOut_, int kVecsOut_>
struct Shape {
  using A = A_;
  using V = Vec<A, kLanes_>;
  static constexpr int kLanes = kLanes_, kRows = kRows_, kVecs = kVecs_;
  static constexpr int kRowsOut = kRowsOut_, kVecsOut = kVecsOut_;
  static constexpr int kPanel = kLanes * kVecs;
  // Gradient blocks: kBlock x kBlock scores at a time, so that they and both operands are near.
  static constexpr int kBlock = 96;
  static_assert(kMinChunk % kPanel == 0 && kMinChunk % kRows == 0 && kBlock % kPanel == 0 &&
                kBlock % kRowsOut == 0 && kMinChunk % kBlock == 0 && kMaxChunk % kBlock == 0 &&
                kPanel % kRowsOut == 0);
};

// The build switches contraction off everywhere; here a * b + c must be one instruction.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// The lanes added up in double: neighbours in pairs, then in fours and so on.
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

// c (kRows x kVecs vectors) = [c +] a b: a[r * row_step + k * k_step] times vectors b[k * ldb].
// The product is summed on its own and added last, which keeps rounding errors small.
template <class S, int kRows, int kVecs, bool kAdd>
MMSSL_INLINE void multiply(const typename S::A* a, int64_t row_step, int64_t k_step,
                           const typename S::A* b, int64_t ldb, int64_t depth, typename S::A* c,
                           int64_t ldc) {
  using A = typename S::A;
  constexpr int L = S::kLanes;
  typename S::V sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    typename S::V column[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) column[v] = load<A, L>(b + k * ldb + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const A x = a[r * row_step + k * k_step];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[r][v] += x * column[v];
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

// kRowsOut rows of a gradient, all features: c += a b, feature vectors at most kVecsOut at a time.
template <class S>
MMSSL_INLINE void add_product(const typename S::A* a, int64_t row_step, int64_t k_step,
                              const typename S::A* b, int64_t depth, typename S::A* c, int64_t ld) {
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

// All ones in the lanes before n, which may be anything.
template <class Bits, int kLanes>
MMSSL_INLINE Vec<Bits, kLanes> lanes_before(int64_t n) {
  static constexpr Bits kOnes[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const int64_t count = n < 0 ? 0 : n < kLanes ? n : kLanes;
  return load<Bits, kLanes>(kOnes + 16 - count);
}

// e where column j + lane of row i counts, else zero. kUpper: of a chunk with itself only i < j.
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

// Whether some entry of a register tile does not count.
template <class S>
MMSSL_INLINE bool at_edge(const Tile<typename S::A>& t, int64_t i, int64_t j) {
  const bool on_diagonal = t.same_rows && i < j + S::kPanel && j < i + S::kRows;
  return on_diagonal || j + S::kPanel > t.cols || i + S::kRows > t.rows;
}

// Scores of one register tile; of the last panel (kEdge) only the vectors that hold some column.
template <class S, bool kEdge>
MMSSL_INLINE void score_tile(const Tile<typename S::A>& t, int64_t i, int64_t j,
                             typename S::A* score, int64_t ldc) {
  constexpr int R = S::kRows, P = S::kPanel, L = S::kLanes;
  static_assert(S::kVecs == 3);
  const typename S::A *a = t.p + i * t.ld, *b = t.q_t + j * t.d;
  if constexpr (kEdge) {
    if (j + L >= t.cols) return multiply<S, R, 1, false>(a, t.ld, 1, b, P, t.d, score, ldc);
    if (j + 2 * L >= t.cols) return multiply<S, R, 2, false>(a, t.ld, 1, b, P, t.d, score, ldc);
  }
  multiply<S, R, 3, false>(a, t.ld, 1, b, P, t.d, score, ldc);
}

template <class S, Shift kShift, bool kColumns, bool kEdge>
MMSSL_INLINE void add_exponentials(const Tile<typename S::A>& t, int64_t i0, int64_t j0,
                                   const typename S::A* score, typename S::V* row_sum,
                                   typename S::V* column_sum) {
  using A = typename S::A;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  const Exp2<A, L> exp2;
  V columns[S::kVecs] = {};
#pragma GCC unroll 8
  for (int r = 0; r < S::kRows; ++r) {
    V sum = row_sum[r];
#pragma GCC unroll 4
    for (int v = 0; v < S::kVecs; ++v) {
      const int64_t j = j0 + v * L;
      if (kEdge && j >= t.cols) break;
      const V s = load<A, L>(score + r * S::kPanel + v * L);
      V e, column_e;
      if constexpr (kShift == Shift::kFixed) {
        e = exp2(s * t.scale + t.shift);
        column_e = e;
      } else {
        e = exp2.shifted(s, t.scale, V{} + t.p_shift[i0 + r]);
        if constexpr (kColumns) {
          column_e = exp2.shifted(s, t.scale, load<A, L>(t.q_shift + j));
        }
      }
      if constexpr (kEdge) {
        e = counted<A, L, true>(e, i0 + r, j, t.rows, t.cols, t.same_rows);
        if constexpr (kColumns) {
          column_e = counted<A, L, true>(column_e, i0 + r, j, t.rows, t.cols, t.same_rows);
        }
      }
      sum += e;
      if constexpr (kColumns) columns[v] += column_e;
    }
    row_sum[r] = sum;
  }
  if constexpr (kColumns) {
#pragma GCC unroll 4
    for (int v = 0; v < S::kVecs; ++v) column_sum[v] += columns[v];
  }
}

template <class S, Shift kShift, bool kColumns>
MMSSL_INLINE void sum_tile(const Tile<typename S::A>& t) {
  using A = typename S::A;
  using V = typename S::V;
  V row_sum[kMaxChunk] = {};
  alignas(64) A score[S::kRows * S::kPanel];
  for (int64_t j = 0; j < t.cols; j += S::kPanel) {
    V column_sum[S::kVecs] = {};
    // A chunk with itself: the triangle above the diagonal, for its rows and its columns.
    const int64_t rows = t.same_rows && j + S::kPanel < t.rows ? j + S::kPanel : t.rows;
    for (int64_t i = 0; i < rows; i += S::kRows) {
      if (at_edge<S>(t, i, j)) {
        score_tile<S, true>(t, i, j, score, S::kPanel);
        add_exponentials<S, kShift, kColumns, true>(t, i, j, score, row_sum + i, column_sum);
      } else {
        score_tile<S, false>(t, i, j, score, S::kPanel);
        add_exponentials<S, kShift, kColumns, false>(t, i, j, score, row_sum + i, column_sum);
      }
      if (t.positive != nullptr) {
        for (int r = 0; r < S::kRows; ++r) {
          const int64_t column = i + r - j;
          if (i + r < t.rows && column >= 0 && column < S::kPanel) {
            t.positive[i + r] = score[r * S::kPanel + column];
          }
        }
      }
    }
    if constexpr (kColumns) {
      const A* sum = reinterpret_cast<const A*>(column_sum);
      for (int64_t c = 0; c < S::kPanel && j + c < t.cols; ++c) t.q_sum[j + c] += sum[c];
    }
  }
  for (int64_t i = 0; i < t.rows; ++i) {
    t.p_sum[i] += sum_lanes<A, S::kLanes>(row_sum[i]);
  }
}

// Running maxima of scale * s, for kShifted.
template <class S>
MMSSL_INLINE void max_tile(const Tile<typename S::A>& t) {
  using A = typename S::A;
  alignas(64) A score[S::kRows * S::kPanel];
  for (int64_t j = 0; j < t.cols; j += S::kPanel) {
    for (int64_t i = 0; i < t.rows; i += S::kRows) {
      score_tile<S, true>(t, i, j, score, S::kPanel);
      const int64_t rows = t.rows - i < S::kRows ? t.rows - i : S::kRows;
      const int64_t cols = t.cols - j < S::kPanel ? t.cols - j : S::kPanel;
      for (int64_t r = 0; r < rows; ++r) {
        A best = t.p_max[i + r];
        for (int64_t c = 0; c < cols; ++c) {
          const A x = score[r * S::kPanel + c] * t.scale;
          if (t.same_rows && i + r == j + c) continue;
          best = x > best ? x : best;
          if (t.q_max != nullptr) t.q_max[j + c] = x > t.q_max[j + c] ? x : t.q_max[j + c];
        }
        t.p_max[i + r] = best;
      }
    }
  }
}

// Scores to g_ij in place.
template <class S, Shift kShift, bool kColumns, bool kEdge>
MMSSL_INLINE void weigh(const Tile<typename S::A>& t, int64_t i0, int64_t j0, typename S::A* g) {
  using A = typename S::A;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  const Exp2<A, L> exp2;
#pragma GCC unroll 4
  for (int v = 0; v < S::kVecs; ++v) {
    const int64_t j = j0 + v * L;
    V q_weight{}, q_shift{};
    if constexpr (kColumns) q_weight = load<A, L>(t.q_weight + j);
    if constexpr (kColumns && kShift == Shift::kShifted) q_shift = load<A, L>(t.q_shift + j);
#pragma GCC unroll 8
    for (int r = 0; r < S::kRows; ++r) {
      A* out = g + r * S::kBlock + v * L;
      const V s = load<A, L>(out);
      const A p_weight = t.p_weight[i0 + r];
      V y;
      if constexpr (kShift == Shift::kFixed) {
        y = exp2(s * t.scale + t.shift);
        if constexpr (kColumns) {
          y *= q_weight + p_weight;
        } else {
          y *= p_weight;
        }
      } else {
        y = p_weight * exp2.shifted(s, t.scale, V{} + t.p_shift[i0 + r]);
        if constexpr (kColumns) y += q_weight * exp2.shifted(s, t.scale, q_shift);
      }
      if constexpr (kEdge) {
        y = counted<A, L, false>(y, i0 + r, j, t.rows, t.cols, t.same_rows);
      }
      store<A, L>(out, y);
    }
  }
}

template <class S, Shift kShift, bool kColumns>
MMSSL_INLINE void grad_tile(const Tile<typename S::A>& t) {
  using A = typename S::A;
  constexpr int64_t B = S::kBlock;
  alignas(64) A g[B * B];
  for (int64_t j0 = 0; j0 < t.cols; j0 += B) {
    for (int64_t i0 = 0; i0 < t.rows; i0 += B) {
      int64_t rows = 0, cols = 0;  // of this block, whole register tiles
      for (; cols < B && j0 + cols < t.cols; cols += S::kPanel) {
        for (rows = 0; rows < B && i0 + rows < t.rows; rows += S::kRows) {
          const int64_t i = i0 + rows, j = j0 + cols;
          A* out = g + rows * B + cols;
          if (at_edge<S>(t, i, j)) {
            score_tile<S, true>(t, i, j, out, B);
            weigh<S, kShift, kColumns, true>(t, i, j, out);
          } else {
            score_tile<S, false>(t, i, j, out, B);
            weigh<S, kShift, kColumns, false>(t, i, j, out);
          }
        }
      }
      if (t.diagonal != nullptr && i0 == j0) {
        for (int64_t k = 0; k < B && i0 + k < t.rows; ++k) {
          t.diagonal[i0 + k] += g[k * B + k];
          g[k * B + k] = 0;
        }
      }
      rows = std::min(B, t.rows - i0);
      cols = std::min(B, t.cols - j0);
      for (int64_t r = 0; r < rows; r += S::kRowsOut) {
        add_product<S>(g + r * B, B, 1, t.q + j0 * t.ld, cols, t.p_grad + (i0 + r) * t.ld, t.ld);
      }
      if (t.q_grad == nullptr) continue;
      for (int64_t c = 0; c < cols; c += S::kRowsOut) {
        add_product<S>(g + c, 1, B, t.p + i0 * t.ld, rows, t.q_grad + (j0 + c) * t.ld, t.ld);
      }
    }
  }
}

#pragma GCC pop_options

}  // namespace mmssl::cpu
