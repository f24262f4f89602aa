// Looks at every entry of an index array on the CPU before a kernel follows it: the last thing between
// a wrong number and a read out of bounds. Passes without a branch over arrays that the kernel is about
// to read anyway; on a GPU nobody looks, since that would wait for the device.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace mmssl {

// Whether all of n ids lie in [0, limit). The sign bit of `bad` is set by a negative id itself and by
// one above the last allowed: last - id wraps below zero.
template <class Int>
__attribute__((always_inline)) inline bool ids_in_range(const Int* id, int64_t n, int64_t limit) {
  using Bits = std::make_unsigned_t<Int>;
  const Bits last = Bits(std::min<int64_t>(limit, std::numeric_limits<Int>::max()) - 1);
  Bits bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= Bits(id[i]) | (last - Bits(id[i]));
  return n == 0 || bad >> (8 * sizeof(Int) - 1) == 0;
}

// Whether count + 1 pointers, the first not negative, never fall. Two differences of numbers that are
// not negative can't wrap, so the signs of both say it all.
__attribute__((always_inline)) inline bool rises(const int64_t* pointer, int64_t count) {
  uint64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    bad |= uint64_t(pointer[i]) | (uint64_t(pointer[i + 1]) - uint64_t(pointer[i]));
  }
  return bad >> 63 == 0;
}

// Whether they start at 0 and end at `total` as well.
inline bool rises_from_zero(const int64_t* pointer, int64_t count, int64_t total) {
  return pointer[0] == 0 && pointer[count] == total && rises(pointer, count);
}

}  // namespace mmssl
