// Looks at every entry of an index array on the CPU before a kernel follows it: the last thing between
// a wrong number and a read out of bounds. Branch-free passes over arrays that the kernel is about to
// read anyway; on a GPU nobody looks, since that would wait for the device.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/parallel.h"

namespace mmssl {

// Entries that one thread looks at in one go; shorter arrays are not worth a second thread.
inline constexpr int64_t kCheckedEntries = 1 << 18;

// Whether all of n ids lie in [0, limit). The sign bit of `bad` is set by a negative id itself and by
// one above the last allowed: last - id wraps below zero.
template <class Int>
bool ids_in_range(const Int* id, int64_t n, int64_t limit) {
  using Bits = std::make_unsigned_t<Int>;
  const Bits last = Bits(std::min<int64_t>(limit, std::numeric_limits<Int>::max()) - 1);
  Bits bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= Bits(id[i]) | (last - Bits(id[i]));
  return n == 0 || bad >> (8 * sizeof(Int) - 1) == 0;
}

// Whether count + 1 pointers start at 0, never fall and end at `total`. Two differences of numbers that
// are not negative can't wrap, so the signs of both say it all.
inline bool rises_from_zero(const int64_t* pointer, int64_t count, int64_t total) {
  uint64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    bad |= uint64_t(pointer[i]) | (uint64_t(pointer[i + 1]) - uint64_t(pointer[i]));
  }
  return pointer[0] == 0 && pointer[count] == total && bad >> 63 == 0;
}

// ids_in_range, by several threads where there is enough to look at.
template <class Int>
bool ids_in_range(const Int* id, int64_t n, int64_t limit, const Parallel& pool) {
  std::atomic<bool> good = true;
  for_each_task(pool, (n + kCheckedEntries - 1) / kCheckedEntries, [&](int64_t task) {
    const int64_t begin = task * kCheckedEntries, end = std::min(n, begin + kCheckedEntries);
    if (!ids_in_range(id + begin, end - begin, limit)) good.store(false, std::memory_order_relaxed);
  });
  return good.load(std::memory_order_relaxed);
}

}  // namespace mmssl
