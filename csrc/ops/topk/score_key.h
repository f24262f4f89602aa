// Integers in the order of floating point scores, and back. Not for NaN; -0 comes just below 0.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/bf16.h"

namespace mmssl {

template <class A>
struct ScoreKey;
template <>
struct ScoreKey<float> {
  using Key = int32_t;
  using Bits = uint32_t;
};
template <>
struct ScoreKey<double> {
  using Key = int64_t;
  using Bits = uint64_t;
};
template <class A>
using Key = typename ScoreKey<A>::Key;
template <class A>
using KeyBits = typename ScoreKey<A>::Bits;

// Below zero larger bits mean smaller numbers, so all but the sign are flipped there.
template <class A>
MMSSL_HD Key<A> flip_below_zero(Key<A> v) {
  return v ^ Key<A>(KeyBits<A>(v >> (8 * sizeof(A) - 1)) >> 1);
}

template <class A>
MMSSL_HD Key<A> to_key(A score) {
  Key<A> bits;
  memcpy(&bits, &score, sizeof(bits));
  return flip_below_zero<A>(bits);
}

template <class A>
MMSSL_HD A from_key(Key<A> key) {
  const Key<A> bits = flip_below_zero<A>(key);
  A score;
  memcpy(&score, &bits, sizeof(score));
  return score;
}

// A key strictly between two others: that of the mean of the two scores, if it lies between them,
// which ends a search among similar scores soonest; by_key: halfway between the keys, which ends
// every search after at most one step per bit of a key. The distance of two keys may exceed a
// signed key.
template <class A>
MMSSL_HD Key<A> middle_key(Key<A> low, Key<A> high, bool by_key) {
  const Key<A> by_value = to_key(A(from_key<A>(low) / 2 + from_key<A>(high) / 2));
  if (!by_key && by_value > low && by_value < high) return by_value;
  return Key<A>(KeyBits<A>(low) + (KeyBits<A>(high) - KeyBits<A>(low)) / 2);
}

// Steps by value before those by key.
constexpr int kStepsByValue = 12;

}  // namespace mmssl
