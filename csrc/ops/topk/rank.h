// Scores and selects for a tile of users against a panel of items: the code that topk.cpp compiles for
// each SIMD level.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/dot.h"
#include "gemm/register_tile.h"
#include "ops/topk/select.h"

namespace mmssl::cpu {

// Maximum number of candidates that are ranked by counting, whose cost grows with the square.
constexpr int64_t kFew = 160;

// A user that is being ranked.
template <class A>
struct Ranked {
  Candidates<A> candidates;
  uint8_t* excluded;  // a bit for each position of an item, padded: set where it is left out
  int64_t index;      // the user's place in the task
};

// Some users against the items at the positions [begin, end). In is what the products read: numbers
// of type A, or words of two bf16 (DotShape), and depth their count in a row.
template <class A, class In>
struct Ranking {
  In* users;        // tiles of kRows rows, transposed: [tile][depth][kRows]
  const In* items;  // panels of kPanel rows, transposed: [panel][depth][kPanel]
  const int32_t* ids;  // the item at each position, padded to panels; null: its position
  const A* largest;    // the largest norm from each panel on, rounded up; null: unknown
  int64_t begin, end;  // begin at a panel, end at another or the last item
  int64_t rows, depth, k, capacity;
  Ranked<A>* ranked;  // (rows)
  A* threshold;       // (rows, padded to tiles): a score has to exceed it; infinite in padding
  A* norm;            // (rows) of the users, rounded up
};

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// A finite number just below t, so that a score equal to t exceeds it: of equal scores the smaller id
// is kept, and ids do not come in order. Denormal numbers are skipped; a processor may take them for
// zero.
template <class A>
MMSSL_INLINE A below(A t) {
  using Limits = std::numeric_limits<A>;
  t = std::min(t, Limits::max());
  return t - std::max(std::abs(t) * Limits::epsilon(), Limits::min());
}

template <class S, class L>
MMSSL_INLINE void cut_row(const Ranking<typename S::A, typename S::In>& t, int64_t row) {
  t.threshold[row] = below(cut<L>(t.ranked[row].candidates, t.k, t.k / 8));
}

// Appends the scores that exceed the threshold, of one row of kPanel scores for the items from j
// on. Excluded items are looked up only here, where one of them might be appended.
template <class S, class L>
MMSSL_INLINE void append(const Ranking<typename S::A, typename S::In>& t, int64_t row, int64_t j,
                         const typename S::A* score, const int32_t* item) {
  using A = typename S::A;
  Candidates<A>& c = t.ranked[row].candidates;
  if (c.count + S::kPanel > t.capacity) cut_row<S, L>(t, row);
  const auto threshold = typename S::V{} + t.threshold[row];
  static_assert(S::kPanel <= 56, "a word has the bits of a panel, wherever it starts in a byte");
  uint64_t excluded;
  __builtin_memcpy(&excluded, t.ranked[row].excluded + j / 8, sizeof(excluded));
  excluded >>= j % 8;
#pragma GCC unroll 4
  for (int v = 0; v < S::kVecs; ++v) {
    const uint32_t bits =
        greater_bits<A, S::kLanes>(load<A, S::kLanes>(score + v * S::kLanes), threshold) &
        ~uint32_t(excluded >> (v * S::kLanes));
    compress<L>(score + v * S::kLanes, bits, c.score + c.count);
    compress<L>(item + v * S::kLanes, bits, c.item + c.count);
    c.count += std::popcount(bits);
  }
}

// Moves the users whose threshold no later item can reach behind the others: by Cauchy and Schwarz, no
// score exceeds the product of two norms. Returns how many users are left.
template <class S>
MMSSL_INLINE int64_t retire(const Ranking<typename S::A, typename S::In>& t, int64_t rows,
                            typename S::A largest) {
  using A = typename S::A;
  constexpr int R = S::kRows;
  bool any = false;
  for (int64_t r = 0; r < rows; ++r) any |= largest * t.norm[r] < t.threshold[r];
  if (!any) return rows;
  const auto column = [&](int64_t r) { return t.users + (r / R * t.depth * R + r % R); };
  for (int64_t r = rows; r-- > 0;) {
    if (!(largest * t.norm[r] < t.threshold[r])) continue;
    const int64_t last = --rows;
    auto *to = column(r), *from = column(last);
    for (int64_t k = 0; k < t.depth; ++k) to[k * R] = from[k * R];
    std::swap(t.ranked[r], t.ranked[last]);
    t.norm[r] = t.norm[last];
    t.threshold[r] = t.threshold[last];
    t.threshold[last] = std::numeric_limits<A>::infinity();
  }
  return rows;
}

// A tile of kRows users against a panel. Few rows have a score above their threshold, which a
// comparison without a branch finds out for all rows at once.
template <class S, class L, int kRows>
MMSSL_INLINE void rank_tile(const Ranking<typename S::A, typename S::In>& t, int64_t i, int64_t j,
                            const typename S::In* panel, typename S::A* score,
                            const int32_t* item) {
  using A = typename S::A;
  constexpr int P = S::kPanel;
  multiply<S, kRows, S::kVecs, false>(t.users + i * t.depth, 1, S::kRows, panel, P, t.depth, score,
                                      P);
  uint32_t rows = 0;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const auto threshold = typename S::V{} + t.threshold[i + r];
    uint32_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < S::kVecs; ++v) {
      const A* own = score + r * P + v * S::kLanes;
      bits |= greater_bits<A, S::kLanes>(load<A, S::kLanes>(own), threshold);
    }
    rows |= uint32_t(bits != 0) << r;
  }
  for (; rows != 0; rows &= rows - 1) {
    const int r = std::countr_zero(rows);
    append<S, L>(t, i + r, j, score + r * P, item);
  }
}

template <class S, class L>
MMSSL_INLINE void rank(const Ranking<typename S::A, typename S::In>& t) {
  using A = typename S::A;
  constexpr int R = S::kRows, P = S::kPanel;
  alignas(64) A score[R * P];
  alignas(64) int32_t positions[P];
  int64_t rows = t.rows;
  int64_t next_cut = 8;  // panels after which thresholds are brought up to date, to retire more users
  for (int64_t j = t.begin; j < t.end && rows > 0; j += P) {
    if (t.largest != nullptr) {
      if (j / P == next_cut) {
        next_cut *= 4;
        for (int64_t r = 0; r < rows; ++r) {
          if (t.ranked[r].candidates.count > t.k) cut_row<S, L>(t, r);
        }
      }
      rows = retire<S>(t, rows, t.largest[j / P]);
    }
    for (int n = 0; t.ids == nullptr && n < P; ++n) positions[n] = int32_t(j + n);
    const int32_t* item = t.ids == nullptr ? positions : t.ids + j;
    const auto* panel = t.items + (j - t.begin) * t.depth;
    for (int64_t i = 0; i < rows; i += R) {
      if (i + 1 == rows) {
        rank_tile<S, L, 1>(t, i, j, panel, score, item);
      } else {
        rank_tile<S, L, R>(t, i, j, panel, score, item);
      }
    }
  }
}

// Cuts a user's candidates to k and sorts them.
template <class L>
MMSSL_INLINE void finish(Candidates<typename L::A>& c, int64_t k, char* scratch,
                         typename L::A* score, int64_t* item) {
  using A = typename L::A;
  if (c.count > k) cut<L>(c, k, 0);
  if (c.count <= kFew) {
    sort_few<L>(c, score, item);
  } else {
    auto* keys = reinterpret_cast<KeyBits<A>*>(scratch);
    sort_many<A>(c, keys, reinterpret_cast<int32_t*>(keys + 2 * c.count), score, item);
  }
  sort_ties(c.count, score, item);
}

// A number no smaller than the norm of x. Squares that underflow are no more than the floor.
template <class T, class A, int L>
MMSSL_INLINE A norm_above(const T* x, int64_t d) {
  constexpr A kFloor = sizeof(A) == 4 ? A(1e-30) : A(1e-290);
  const A squares = dot<T, A, L>(x, x, d), norm = std::sqrt(std::max(squares, kFloor));
  // What rounding may take from this sum, and add to a score: (D + 2) eps each.
  const A above = norm * (1 + 2 * (d + 8) * std::numeric_limits<A>::epsilon());
  return above == above ? above : std::numeric_limits<A>::infinity();  // of NaN: unknown
}

template <class A, class T>
MMSSL_INLINE A moved(T x) {
  if constexpr (std::is_same_v<T, A>) {
    return x;
  } else {
    return widen(x);
  }
}

// Transposes the rows of x (., d) at `count` positions from `begin` on, up to kPanel, into a panel (d,
// kPanel), zero-padded. ids: as in Ranking. Words are moved as they are.
template <class T, class A, int L, int kPanel>
MMSSL_INLINE void pack(const T* x, const int32_t* ids, int64_t begin, int64_t count, int64_t d,
                       A* panel) {
  const auto row = [&](int64_t n) { return x + (ids == nullptr ? begin + n : ids[begin + n]) * d; };
  for (int64_t n = 0; n < kPanel; n += L) {
    int64_t k = 0;
    for (; k + L <= d; k += L) {
      Vec<A, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        block[i] = n + i < count ? load_as<A, T, L>(row(n + i) + k) : Vec<A, L>{};
      }
      transpose_step<A, L, 1>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store<A, L>(panel + (k + i) * kPanel + n, block[i]);
    }
    for (; k < d; ++k) {
      for (int i = 0; i < L; ++i) {
        panel[k * kPanel + n + i] = n + i < count ? moved<A>(row(n + i)[k]) : A(0);
      }
    }
  }
}

template <class T, class A, class In>
struct Functions {
  int64_t rows, panel;
  void (*pack)(const T* x, const int32_t* ids, int64_t begin, int64_t count, int64_t depth,
               In* panel);
  A (*norm)(const T* x, int64_t d);
  void (*rank)(const Ranking<A, In>&);
  void (*finish)(Candidates<A>&, int64_t k, char* scratch, A* score, int64_t* item);
};
#pragma GCC pop_options

}  // namespace mmssl::cpu
