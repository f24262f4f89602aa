// InfoNCE on cosine similarities on the CPU; no N x M matrix is ever held. Legend: B independent
// problems, N anchors, M rows that hold their positives, K shared negatives, D features.
//
//   s12_ij = <a_i, p_j>, s11_ij = <a_i, a_j>, s1n_ik = <a_i, n_k>   (rows normalized, eps 1e-12)
//   lse_i  = log(sum_j exp(s12_ij / t) + sum_{j != i} exp(s11_ij / t) + sum_k exp(s1n_ik / t))
//   loss_i = -log(exp(s12_iy / t - lse_i) + eps), y = target_i
//
// in_batch: if false, the first sum has the term j = target_i only. intra_view: if false, the
// second sum is left out. symmetric: the mean of this and of the same with a and p swapped.
#pragma once
#include <cmath>

#include "common/buffer.h"
#include "common/exp2.h"
#include "common/pair_schedule.h"
#include "gemm/register_tile.h"

namespace mmssl::cpu {

struct InfoNceArgs {
  int64_t pairs, n, m, k, d;  // B, N, M, K, D
  // (B, N), each in [-1, M); null for target_i = i, with M = N. An anchor with -1 has no positive:
  // s12_iy counts as 0. symmetric needs null.
  const int64_t* target;
  bool in_batch, intra_view, symmetric;
  double temperature, eps;

  int directions() const { return symmetric ? 2 : 1; }
};

// T as stored, A as summed: (float, float), (bf16, float) or (double, double). All row-major and
// contiguous; anchor and its gradient (B, N, D), positive (B, M, D), negatives (K, D) or null.
//
// Forward writes loss (B, N) and saved (directions + 1, B, N): lse of each direction, then s12_iy.
template <class T, class A>
void info_nce_forward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                      A* loss, double* saved, const Parallel& pool);

// Backward takes grad (B, N), the gradient of loss. Every row of a result is summed in one fixed
// order, so the bits do not depend on the number of threads. grad_negatives may be null.
template <class T, class A>
void info_nce_backward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                       const double* saved, const A* grad, T* grad_anchor, T* grad_positive,
                       T* grad_negatives, A* grad_temperature, const Parallel& pool);

// The rest of this header is shared by info_nce.cpp, which cuts the problem into tiles, and
// tiles.cpp, which compiles them for every SIMD level.

// Sets of rows.
enum : int { kAnchors, kPositives, kNegatives, kSets };

// Rows of a chunk. A tile of two chunks is one task: large enough to be worth scheduling, small
// enough that its operands stay in the second-level cache. Both are multiples of every register
// tile.
constexpr int64_t kMaxChunk = 192, kMinChunk = 96;
// Up to this many anchors chunks are short, so that many threads find work in one round.
constexpr int64_t kFewRows = 1024;

// How exponents are kept in range. kFixed: one shift for all (cosines are bounded). kShifted: one
// shift per row, for temperatures where that would leave the range of A.
enum class Shift { kFixed, kShifted };

template <class A>
struct Tile {
  const A* p;    // rows of P, `ld` apart, normalized, zero-padded
  const A* q;    // rows of Q
  const A* q_t;  // the same in panels of kPanel rows, transposed: [panel][d][kPanel]
  int64_t rows, cols, d, ld;
  bool same_rows;  // P and Q are one chunk of one set: i == j is left out
  A scale;         // log2(e) / t
  A shift;         // kFixed: e_ij = exp2(scale * s_ij + shift)
  const A *p_shift, *q_shift;  // kShifted: subtracted from scale * s_ij, per row and per column

  // Forward. Sums (or maxima of scale * s) are added to these; q_* is null where columns don't
  // count. For a chunk with itself the sums of rows and of columns share their memory.
  double *p_sum, *q_sum;
  A *p_max, *q_max;

  // Where Q holds positives of P: the row of each among all padded rows of its set, of which the
  // rows of Q begin with q_row; null elsewhere.
  const int64_t* target;
  int64_t q_row;
  double* positive;  // forward: receives the scores of the positives

  // Backward: g_ij = e_ij * (p_weight_i + q_weight_j). Adds g Q to p_grad and g^T P to q_grad,
  // which is null if same_rows; q_weight may be null. The g_ij of a positive is left out and added
  // to own_i instead: it is the largest entry and nearly cancels, so it is kept exact and applied
  // last.
  const A *p_weight, *q_weight;
  A* own;
  A *p_grad, *q_grad;

  // The column of the positive of row i, or a number that is not in [0, cols).
  int64_t column(int64_t i) const { return target[i] - q_row; }
};

// The row sets cut into chunks. Copies of a set: one per pair, of the negatives one in all.
struct Layout {
  Layout(const InfoNceArgs& a, bool has_negatives)
      : d(a.d), chunk(a.n <= kFewRows ? kMinChunk : kMaxChunk) {
    sets = {{a.n, chunk, a.pairs}, {a.m, chunk, a.pairs}, {has_negatives ? a.k : 0, chunk, 1}};
  }
  int64_t all_rows(int set) const { return sets[set].copies * sets[set].padded(); }

  std::vector<RowSet> sets;
  int64_t d, chunk;
};

// The tiles of float32 or float64 that serve this processor.
template <class A>
struct TileFunctions {
  using Function = void (*)(const Tile<A>&);
  int64_t lanes, panel;
  Function max;
  Function sum[2][2];   // [shifted][columns]
  Function grad[2][2];  // [shifted][columns]
  void (*normalize)(const A* x, int64_t rows, int64_t d, int64_t ld, A* z, double* norm);
  void (*make_panels)(const A* z, int64_t rows, int64_t d, int64_t ld, A* out);
  void (*add_row)(const A* row, A weight, int64_t d, A* sum);
  double (*through_norm)(const A* z, const A* dz, double norm, double scale, int64_t d, A* out);
};

template <class A>
const TileFunctions<A>& tile_functions();

// The operands of a bfloat16 tile. Words are pairs of bfloat16: `words_p` (rows, depth) along the
// features, `panels_q` panels of q along the features, `pairs_*` (rows / 2, ld) two rows
// interleaved, `columns_p` (ld, chunk) bfloat16 transposed.
struct Bf16Tile : Tile<float> {
  const uint32_t *words_p, *panels_q, *pairs_p, *pairs_q;
  const bf16* columns_p;
  const float *p_inverse, *q_inverse;  // 1 / norm of the scaled rows
  int64_t depth;                       // words per row
  int64_t chunk;
  float* q_grad_t;  // with AMX the gradient of Q is written transposed, (ld, chunk)
};

// The engine for bfloat16 inputs where bf16_unit() is not kNone.
// Scores are exact products of the inputs, summed in float32, so they are as good as float32 ones.
// Rows are scaled by a power of two only (exact), to a norm in [1, 2); the rest of the
// normalization is applied to the scores. In backward, g_ij n_i n_j is rounded to bfloat16 for the
// second product.
class Bf16Engine {
 public:
  explicit Bf16Engine(const Layout& layout);
  void place(Arena& arena, bool gradients);
  void pack(int set, int64_t first_row, const bf16* x, int64_t rows, double* norm);
  void max(const Tile<float>&, int, int64_t, int, int64_t) const {}  // kFixed only
  void sum(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;
  void grad(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;
  const float* normalized(int set, int64_t row, float* out) const;
  float* gradient(int set, int64_t row, float* out) const;

 private:
  Bf16Tile tile(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;

  Layout layout_;
  int64_t depth_, ld_;
  uint32_t *words_[kSets] = {}, *panels_[kSets] = {}, *pairs_[kSets] = {};
  bf16* columns_[kSets] = {};
  float *inverse_[kSets] = {}, *grads_[kSets] = {}, *grads_t_[kSets] = {};
};

// The tiles of float32 and float64. Gradients are formed kBlock x kBlock scores at a time, so that
// they and both operands are near.
constexpr int64_t kBlock = 96;

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Whether some entry of a register tile is left out.
template <class S>
MMSSL_INLINE bool at_edge(const Tile<typename S::A>& t, int64_t i, int64_t j) {
  const bool on_diagonal = t.same_rows && i < j + S::kPanel && j < i + S::kRows;
  return on_diagonal || j + S::kPanel > t.cols || i + S::kRows > t.rows;
}

// Scores of one register tile; in the last panel (kEdge) only the vectors that hold some column.
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
          const int64_t column = i + r < t.rows ? t.column(i + r) - j : -1;
          if (column >= 0 && column < S::kPanel) {
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

// Turns scores into g_ij in place.
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
      A* out = g + r * kBlock + v * L;
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
  constexpr int64_t B = kBlock;
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
      rows = std::min(B, t.rows - i0);
      cols = std::min(B, t.cols - j0);
      for (int64_t r = 0; t.own != nullptr && r < rows; ++r) {
        const int64_t column = t.column(i0 + r) - j0;
        if (column < 0 || column >= cols) continue;
        t.own[i0 + r] += g[r * B + column];
        g[r * B + column] = 0;
      }
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

}  // namespace mmssl::cpu
