#include "cpu/check_index.h"

#include <algorithm>
#include <atomic>

#include "common/check_index.h"
#include "cpu/simd.h"

namespace mmssl::cpu {
namespace {

// Entries that one thread looks at in one go; shorter arrays are not worth a second thread.
constexpr int64_t kTaskEntries = 1 << 18;

// The compiler vectorises the same loop for every level.
#define MMSSL_ENTRY(level, target)                                           \
  template <class Int>                                                       \
  target bool in_range_##level(const Int* id, int64_t n, int64_t limit) {    \
    return mmssl::ids_in_range(id, n, limit);                                \
  }                                                                          \
  target bool rises_##level(const int64_t* p, int64_t count, int64_t total) { \
    return mmssl::rises_from_zero(p, count, total);                          \
  }
MMSSL_ENTRY(default, )
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512)
#undef MMSSL_ENTRY

template <class Int>
bool in_range(const Int* id, int64_t n, int64_t limit, const Parallel& pool) {
  using Check = bool (*)(const Int*, int64_t, int64_t);
  static const Check table[3] = {in_range_default<Int>, in_range_avx2<Int>, in_range_avx512<Int>};
  const Check check = table[static_cast<int>(simd_level())];
  std::atomic<bool> good = true;
  for_each_task(pool, (n + kTaskEntries - 1) / kTaskEntries, [&](int64_t task) {
    const int64_t begin = task * kTaskEntries, end = std::min(n, begin + kTaskEntries);
    if (!check(id + begin, end - begin, limit)) good.store(false, std::memory_order_relaxed);
  });
  return good.load(std::memory_order_relaxed);
}

}  // namespace

bool ids_in_range(const int32_t* id, int64_t n, int64_t limit, const Parallel& pool) {
  return in_range(id, n, limit, pool);
}

bool ids_in_range(const int64_t* id, int64_t n, int64_t limit, const Parallel& pool) {
  return in_range(id, n, limit, pool);
}

bool rises_from_zero(const int64_t* pointer, int64_t count, int64_t total) {
  using Check = bool (*)(const int64_t*, int64_t, int64_t);
  static const Check table[3] = {rises_default, rises_avx2, rises_avx512};
  return table[static_cast<int>(simd_level())](pointer, count, total);
}

}  // namespace mmssl::cpu
