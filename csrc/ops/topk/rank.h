// Scores and selects for a tile of users against a panel of items: the code that topk.cpp compiles for
// each SIMD level.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>

#include "gemm/register_tile.h"
#include "ops/topk/select.h"

namespace mmssl::cpu {

// Maximum number of candidates that are ranked by counting, whose cost grows with the square.
constexpr int64_t kFew = 160;

// The train items of a user that have not been passed yet, ascending.
struct Excluded {
  const int32_t *next, *end;
};

// Some users against the items [begin, end). In is what the products read: numbers of type A, or
// words of two bf16 (DotShape), and depth their count in a row.
template <class A, class In>
struct Ranking {
  const In* users;  // tiles of kRows rows, transposed: [tile][depth][kRows]
  const In* items;  // panels of kPanel rows, transposed: [panel][depth][kPanel]
  int64_t begin, end;  // begin at a panel, end at another or the last item
  int64_t rows, depth, k, capacity;
  Candidates<A>* candidates;  // (rows)
  A* threshold;               // (rows, padded to tiles): a score has to exceed it; infinite in padding
  Excluded* excluded;         // (rows)
};

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Appends the scores that exceed the threshold, of one row of kPanel scores for the items from j
// on. Excluded items are looked up only here, where one of them might be appended.
template <class S, class L>
MMSSL_INLINE void append(const Ranking<typename S::A, typename S::In>& t, int64_t row, int64_t j,
                         typename S::A* score, const int32_t* item) {
  using A = typename S::A;
  Excluded& excluded = t.excluded[row];
  for (; excluded.next != excluded.end && *excluded.next < j + S::kPanel; ++excluded.next) {
    if (*excluded.next >= j) score[*excluded.next - j] = -std::numeric_limits<A>::infinity();
  }
  Candidates<A>& c = t.candidates[row];
  if (c.count + S::kPanel > t.capacity) t.threshold[row] = cut<L>(c, t.k, t.k / 8);
  const auto threshold = typename S::V{} + t.threshold[row];
#pragma GCC unroll 4
  for (int v = 0; v < S::kVecs; ++v) {
    uint32_t bits =
        greater_bits<A, S::kLanes>(load<A, S::kLanes>(score + v * S::kLanes), threshold);
    const int64_t left = t.end - j - v * S::kLanes;
    if (left < S::kLanes) bits &= left <= 0 ? 0 : (1u << left) - 1;
    compress<L>(score + v * S::kLanes, bits, c.score + c.count);
    compress<L>(item + v * S::kLanes, bits, c.item + c.count);
    c.count += std::popcount(bits);
  }
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
  alignas(64) int32_t item[P];
  for (int64_t j = t.begin; j < t.end; j += P) {
    for (int n = 0; n < P; ++n) item[n] = int32_t(j + n);
    const auto* panel = t.items + (j - t.begin) * t.depth;
    for (int64_t i = 0; i < t.rows; i += R) {
      if (i + 1 == t.rows) {
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
}

template <class A, class T>
MMSSL_INLINE A moved(T x) {
  if constexpr (std::is_same_v<T, A>) {
    return x;
  } else {
    return widen(x);
  }
}

// Transposes up to kPanel rows of x (count, d) into a panel (d, kPanel), zero-padded. Words are moved
// as they are.
template <class T, class A, int L, int kPanel>
MMSSL_INLINE void pack(const T* x, int64_t count, int64_t d, A* panel) {
  for (int64_t n = 0; n < kPanel; n += L) {
    int64_t k = 0;
    for (; k + L <= d; k += L) {
      Vec<A, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        block[i] = n + i < count ? load_as<A, T, L>(x + (n + i) * d + k) : Vec<A, L>{};
      }
      transpose_step<A, L, 1>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store<A, L>(panel + (k + i) * kPanel + n, block[i]);
    }
    for (; k < d; ++k) {
      for (int i = 0; i < L; ++i) {
        panel[k * kPanel + n + i] = n + i < count ? moved<A>(x[(n + i) * d + k]) : A(0);
      }
    }
  }
}

template <class T, class A, class In>
struct Functions {
  int64_t rows, panel;
  void (*pack)(const T* x, int64_t count, int64_t depth, In* panel);
  void (*rank)(const Ranking<A, In>&);
  void (*finish)(Candidates<A>&, int64_t k, char* scratch, A* score, int64_t* item);
};
#pragma GCC pop_options

}  // namespace mmssl::cpu
