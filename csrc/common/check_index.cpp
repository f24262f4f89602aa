#include "common/check_index.h"

#include <algorithm>
#include <atomic>

#include "common/simd.h"

namespace mmssl::cpu {
namespace {

// Entries of a task; shorter arrays are not worth a second thread.
constexpr int64_t kTaskEntries = 1 << 18;

// The compiler vectorizes the same loop for every level.
#define MMSSL_ENTRY(level, target)                                           \
  template <class Int>                                                       \
  target bool in_range_##level(const Int* id, int64_t n, int64_t limit) {    \
    return mmssl::ids_in_range(id, n, limit);                                \
  }                                                                          \
  target bool non_decreasing_##level(const int64_t* p, int64_t count) {      \
    return mmssl::non_decreasing(p, count);                                  \
  }
MMSSL_ENTRY(default, )
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512)
#undef MMSSL_ENTRY

// Whether good(begin, end) holds for all parts of [0, n).
template <class F>
bool all_good(const Parallel& pool, int64_t n, const F& good) {
  std::atomic<bool> all = true;
  for_each_task(pool, (n + kTaskEntries - 1) / kTaskEntries, [&](int64_t task) {
    const int64_t begin = task * kTaskEntries, end = std::min(n, begin + kTaskEntries);
    if (!good(begin, end)) all.store(false, std::memory_order_relaxed);
  });
  return all.load(std::memory_order_relaxed);
}

template <class Int>
bool in_range(const Int* id, int64_t n, int64_t limit, const Parallel& pool) {
  const auto& check = at_level(in_range_default<Int>, in_range_avx2<Int>, in_range_avx512<Int>);
  return all_good(pool, n, [&](int64_t begin, int64_t end) {
    return check(id + begin, end - begin, limit);
  });
}

}  // namespace

bool ids_in_range(const int32_t* id, int64_t n, int64_t limit, const Parallel& pool) {
  return in_range(id, n, limit, pool);
}

bool ids_in_range(const int64_t* id, int64_t n, int64_t limit, const Parallel& pool) {
  return in_range(id, n, limit, pool);
}

bool is_rowptr(const int64_t* pointer, int64_t count, int64_t nnz, const Parallel& pool) {
  const auto& check = at_level(non_decreasing_default, non_decreasing_avx2, non_decreasing_avx512);
  const bool good = all_good(pool, count, [&](int64_t begin, int64_t end) {
    return check(pointer + begin, end - begin);
  });
  return good && pointer[0] == 0 && pointer[count] == nnz;
}

}  // namespace mmssl::cpu
