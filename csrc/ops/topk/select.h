// One user's candidates: appended as they are found, cut back to the best k whenever they fill their
// buffer, and sorted at the end. Cuts bisect for a threshold and count; only ties are sorted by
// comparisons.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/topk/score_key.h"
#include "common/simd.h"

namespace mmssl::cpu {

// The SIMD level: vectors of kLanes scores, and whether an instruction compresses lanes.
template <class A_, int kLanes_, bool kHasCompress_>
struct SelectShape {
  using A = A_;
  static constexpr int kLanes = kLanes_;
  static constexpr bool kHasCompress = kHasCompress_;
  static constexpr uint32_t kAll = (1u << kLanes) - 1;
};

// Bit i is set if a[i] > b[i]. The instructions are inline assembly: intrinsics can't be inlined
// into a body that several levels share, and a comparison of vectors yields no bits.
template <class A, int kLanes>
MMSSL_INLINE uint32_t greater_bits(Vec<A, kLanes> a, Vec<A, kLanes> b) {
#if defined(__x86_64__)
  constexpr bool kFloat = sizeof(A) == 4;
  if constexpr (sizeof(a) == 64) {
    std::conditional_t<kFloat, uint16_t, uint8_t> bits;
    if constexpr (kFloat) {
      asm("vcmpps $0x1e, %2, %1, %0" : "=k"(bits) : "v"(a), "v"(b));
    } else {
      asm("vcmppd $0x1e, %2, %1, %0" : "=k"(bits) : "v"(a), "v"(b));
    }
    return bits;
  } else {
    const auto mask = a > b;
    uint32_t bits;
    if constexpr (sizeof(a) == 32 && kFloat) {
      asm("vmovmskps %1, %0" : "=r"(bits) : "x"(mask));
    } else if constexpr (sizeof(a) == 32) {
      asm("vmovmskpd %1, %0" : "=r"(bits) : "x"(mask));
    } else if constexpr (kFloat) {
      asm("movmskps %1, %0" : "=r"(bits) : "x"(mask));
    } else {
      asm("movmskpd %1, %0" : "=r"(bits) : "x"(mask));
    }
    return bits;
  }
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= uint32_t(a[i] > b[i]) << i;
  return bits;
#endif
}

// Writes the lanes of `in` whose bit is set to `out`, without gaps. The rest of the vector in `out`
// is undefined. `out` may precede `in` in the same array.
template <class S, class E>
MMSSL_INLINE void compress(const E* in, uint32_t bits, E* out) {
#if defined(__x86_64__)
  if constexpr (S::kHasCompress) {
    const std::conditional_t<S::kLanes == 16, uint16_t, uint8_t> mask = bits;
    Vec<E, S::kLanes> v = load<E, S::kLanes>(in);
    if constexpr (sizeof(E) == 4) {
      asm("vpcompressd %0, %0%{%1%}%{z%}" : "+v"(v) : "Yk"(mask));
    } else {
      asm("vpcompressq %0, %0%{%1%}%{z%}" : "+v"(v) : "Yk"(mask));
    }
    store<E, S::kLanes>(out, v);
    return;
  }
#endif
  for (; bits != 0; bits &= bits - 1) *out++ = in[std::countr_zero(bits)];
}

template <class A>
struct Candidates {
  A* score;       // (capacity + one vector)
  int32_t* item;  // the same
  int64_t count;
};

// The largest of the `left` smallest ids among the candidates whose score is t.
template <class A>
int32_t last_tie(const Candidates<A>& c, A t, int64_t left) {
  std::vector<int32_t> ties;
  for (int64_t j = 0; j < c.count; ++j) {
    if (c.score[j] == t) ties.push_back(c.item[j]);
  }
  std::nth_element(ties.begin(), ties.begin() + (left - 1), ties.end());
  return ties[left - 1];
}

// The number of scores that are at least t among the first `padded`, a multiple of the lanes, none
// of them NaN.
template <class S>
MMSSL_INLINE int64_t count_at_least(const typename S::A* score, int64_t padded, typename S::A t) {
  using A = typename S::A;
  const auto bound = Vec<A, S::kLanes>{} + t;
  int64_t below = 0;
  for (int64_t j = 0; j < padded; j += S::kLanes) {
    below += std::popcount(greater_bits<A, S::kLanes>(bound, load<A, S::kLanes>(score + j)));
  }
  return padded - below;
}

// Keeps the best k of more than k candidates, and at most `slack` more where that ends the search
// sooner. Ties go to the smaller item. Returns the least score that is kept: k candidates are at
// least this good.
template <class S>
MMSSL_INLINE typename S::A cut(Candidates<typename S::A>& c, int64_t k, int64_t slack) {
  using A = typename S::A;
  constexpr int L = S::kLanes;
  constexpr A kWorst = -std::numeric_limits<A>::infinity();
  const int64_t padded = (c.count + L - 1) / L * L;
  std::fill(c.score + c.count, c.score + padded, c.score[0]);
  auto least = load<A, L>(c.score), most = least;
  for (int64_t j = L; j < padded; j += L) {
    const auto v = load<A, L>(c.score + j);
    least = v < least ? v : least;
    most = v > most ? v : most;
  }
  A smallest = least[0], largest = most[0];
  for (int i = 1; i < L; ++i) {
    smallest = std::min(smallest, A(least[i]));
    largest = std::max(largest, A(most[i]));
  }
  std::fill(c.score + c.count, c.score + padded, kWorst);
  Key<A> low = to_key(smallest), high = to_key(largest) + 1;  // at_low are >= low, at_high >= high
  int64_t at_low = c.count, at_high = 0;
  for (int step = 0; high != low + 1 && at_low > k + slack; ++step) {
    const Key<A> middle = middle_key<A>(low, high, step >= kStepsByValue);
    const int64_t at_middle = count_at_least<S>(c.score, padded, from_key<A>(middle));
    (at_middle >= k ? low : high) = middle;
    (at_middle >= k ? at_low : at_high) = at_middle;
  }
  const A t = from_key<A>(low);
  const auto bound = Vec<A, L>{} + t;
  // Where not all scores equal to t are kept, those up to this id are.
  const bool all = at_low <= k + slack || at_low == k;
  const int32_t last = all ? 0 : last_tie(c, t, k - at_high);
  int64_t kept = 0;
  for (int64_t j = 0; j < padded; j += L) {
    const auto v = load<A, L>(c.score + j);
    const uint32_t above = greater_bits<A, L>(v, bound);
    uint32_t equal = ~(above | greater_bits<A, L>(bound, v)) & S::kAll;
    for (uint32_t ties = all ? 0 : equal; ties != 0; ties &= ties - 1) {
      const int lane = std::countr_zero(ties);
      if (c.item[j + lane] > last) equal &= ~(1u << lane);
    }
    compress<S>(c.score + j, above | equal, c.score + kept);
    compress<S>(c.item + j, above | equal, c.item + kept);
    kept += std::popcount(above | equal);
  }
  c.count = kept;
  return t;
}

// Sorts best first, ties in their present order: a candidate's rank is the number of better ones.
template <class S>
MMSSL_INLINE void sort_few(const Candidates<typename S::A>& c, typename S::A* score, int64_t* item) {
  using A = typename S::A;
  constexpr int L = S::kLanes;
  const int64_t padded = (c.count + L - 1) / L * L;
  std::fill(c.score + c.count, c.score + padded, -std::numeric_limits<A>::infinity());
  for (int64_t i = 0; i < c.count; ++i) {
    const auto own = Vec<A, L>{} + c.score[i];
    int64_t rank = 0;
    for (int64_t j = 0; j < padded; j += L) {
      const auto v = load<A, L>(c.score + j);
      const uint32_t before = i - j >= L ? S::kAll : i <= j ? 0 : (1u << (i - j)) - 1;
      const uint32_t ahead = (greater_bits<A, L>(v, own) & ~before) |
                             (~greater_bits<A, L>(own, v) & before);
      rank += std::popcount(ahead);
    }
    score[rank] = c.score[i];
    item[rank] = c.item[i];
  }
}

// The same by counting sort, least significant byte first. `keys` and `items` hold 2 * count.
template <class A>
void sort_many(const Candidates<A>& c, KeyBits<A>* keys, int32_t* items, A* score, int64_t* item) {
  using Bits = KeyBits<A>;
  constexpr int kBytes = sizeof(A);
  constexpr Bits kSign = Bits(1) << (8 * kBytes - 1);
  const int64_t n = c.count;
  int32_t counts[kBytes][256] = {};
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = ~(Bits(to_key(c.score[i] + A(0))) ^ kSign);  // + 0: one zero; ~: largest first
    items[i] = c.item[i];
    for (int byte = 0; byte < kBytes; ++byte) ++counts[byte][keys[i] >> (8 * byte) & 255];
  }
  Bits *from = keys, *to = keys + n;
  int32_t *from_item = items, *to_item = items + n;
  for (int byte = 0; byte < kBytes; ++byte) {
    int32_t* count = counts[byte];
    if (count[from[0] >> (8 * byte) & 255] == n) continue;  // all the same
    int32_t start = 0;
    for (int value = 0; value < 256; ++value) start += std::exchange(count[value], start);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t position = count[from[i] >> (8 * byte) & 255]++;
      to[position] = from[i];
      to_item[position] = from_item[i];
    }
    std::swap(from, to);
    std::swap(from_item, to_item);
  }
  for (int64_t i = 0; i < n; ++i) {
    score[i] = from_key<A>(Key<A>(~from[i] ^ kSign));
    item[i] = from_item[i];
  }
}

// Orders the items of equal scores in a sorted list by their ids.
template <class A>
void sort_ties(int64_t count, const A* score, int64_t* item) {
  for (int64_t i = 1; i < count; ++i) {
    if (score[i] != score[i - 1]) continue;
    const int64_t first = i - 1;
    while (i < count && score[i] == score[first]) ++i;
    std::sort(item + first, item + i);
  }
}

}  // namespace mmssl::cpu
