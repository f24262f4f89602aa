#include "ops/keep_mask/keep_mask.h"

#include <algorithm>
#include <cstring>

#include "common/simd.h"

namespace mmssl::cpu {
namespace {

// Words of one task: enough to be worth a thread.
constexpr int64_t kTaskWords = 1 << 14;

template <int kLanes>
MMSSL_INLINE Vec<uint64_t, kLanes> splitmix(Vec<uint64_t, kLanes> z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// keep[4 begin, 4 end) from words [begin, end), a multiple of kLanes many.
template <int kLanes>
MMSSL_INLINE void words(uint64_t seed, int16_t limit, uint8_t* keep, int64_t begin, int64_t end) {
  Vec<uint64_t, kLanes> lane;
  uint64_t numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) numbers[i] = i + 1;
  __builtin_memcpy(&lane, numbers, sizeof(lane));
  for (int64_t w = begin; w < end; w += kLanes) {
    const Vec<uint64_t, kLanes> word =
        splitmix<kLanes>(seed + (lane + uint64_t(w)) * 0x9e3779b97f4a7c15u);
    Vec<int16_t, kLanes * 4> draw;
    __builtin_memcpy(&draw, &word, sizeof(draw));
    const Vec<int16_t, kLanes * 4> kept = (draw >= limit) & 1;
    const auto bytes = __builtin_convertvector(kept, Vec<uint8_t, kLanes * 4>);
    __builtin_memcpy(keep + 4 * w, &bytes, sizeof(bytes));
  }
}

#define MMSSL_ENTRY(level, target, lanes)                                                     \
  target void words_##level(uint64_t s, int16_t l, uint8_t* k, int64_t begin, int64_t end) { \
    words<lanes>(s, l, k, begin, end);                                                        \
  }
MMSSL_ENTRY(default, , 2)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 4)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 8)
#undef MMSSL_ENTRY

}  // namespace

void keep_mask(uint64_t seed, int16_t limit, uint8_t* keep, int64_t n, const Parallel& pool) {
  if (n == 0) return;  // keep may be null
  const auto& fill = at_level(words_default, words_avx2, words_avx512);
  constexpr int64_t kMaxLanes = 8;
  const int64_t whole = n / (4 * kMaxLanes) * kMaxLanes;  // words written in place
  for_each_task(pool, (whole + kTaskWords - 1) / kTaskWords, [&](int64_t task) {
    fill(seed, limit, keep, task * kTaskWords, std::min((task + 1) * kTaskWords, whole));
  });
  uint8_t rest[4 * kMaxLanes];
  fill(seed + uint64_t(whole) * 0x9e3779b97f4a7c15u, limit, rest, 0, kMaxLanes);
  std::memcpy(keep + 4 * whole, rest, n - 4 * whole);
}

}  // namespace mmssl::cpu
