// Checks every entry of an index array on the CPU before a kernel follows it, since a wrong one
// would be read out of bounds. The loops have no branch, over arrays that the kernel is about to
// read anyway. On a GPU these checks would wait for the device, so its bindings leave them out.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/parallel.h"

namespace mmssl {

// Whether all n ids lie in [0, limit). The sign bit of `bad` is set by a negative id and by one
// above the last allowed, for which last - id wraps below zero.
template <class Int>
__attribute__((always_inline)) inline bool ids_in_range(const Int* id, int64_t n, int64_t limit) {
  using Bits = std::make_unsigned_t<Int>;
  const Bits last = Bits(std::min<int64_t>(limit, std::numeric_limits<Int>::max()) - 1);
  Bits bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= Bits(id[i]) | (last - Bits(id[i]));
  return n == 0 || bad >> (8 * sizeof(Int) - 1) == 0;
}

// Whether count + 1 pointers, none of them negative, are non-decreasing. The difference of two
// numbers that are not negative can't wrap, so the signs of both suffice.
__attribute__((always_inline)) inline bool non_decreasing(const int64_t* pointer, int64_t count) {
  uint64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    bad |= uint64_t(pointer[i]) | (uint64_t(pointer[i + 1]) - uint64_t(pointer[i]));
  }
  return bad >> 63 == 0;
}

// Whether count + 1 pointers are non-decreasing from 0 to nnz.
inline bool is_rowptr(const int64_t* pointer, int64_t count, int64_t nnz) {
  return pointer[0] == 0 && pointer[count] == nnz && non_decreasing(pointer, count);
}

namespace cpu {

// Refuses ids of an argument out of [low, limit). Python gets std::invalid_argument as an exception
// with this text alone, which mmssl.ops raises as its InputError.
inline void check_ids(const char* name, const int64_t* id, int64_t n, int64_t limit,
                      int64_t low = 0, const char* what = "ids") {
  for (int64_t i = 0; i < n; ++i) {
    if (id[i] >= low && id[i] < limit) continue;
    throw std::invalid_argument(std::string(name) + ": expected " + what + " in [" +
                                std::to_string(low) + ", " + std::to_string(limit) + "), got " +
                                std::to_string(id[i]));
  }
}

// The same at the SIMD level of this machine, by several threads if the array is long.
bool ids_in_range(const int32_t* id, int64_t n, int64_t limit, const Parallel& pool);
bool ids_in_range(const int64_t* id, int64_t n, int64_t limit, const Parallel& pool);
bool is_rowptr(const int64_t* pointer, int64_t count, int64_t nnz, const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
