// A dot product that is the same number at every SIMD level.
#pragma once
#include <type_traits>

#include "cpu/simd.h"

namespace mmssl::cpu {

// <g, x> over d features in 64 / sizeof(A) running sums, whatever the width of a vector, so that
// all SIMD levels add in the same order.
template <class T, class A, int kLanes>
MMSSL_INLINE A dot(const T* g, const T* x, int64_t d) {
  constexpr int kSums = 64 / sizeof(A), kVecs = kSums / kLanes;
  constexpr int kPack = std::is_same_v<T, bf16> ? 2 : 1;  // columns that share a lane
  Vec<A, kLanes> sum[kVecs] = {};
  int64_t k = 0;
  for (; k + kSums * kPack <= d; k += kSums * kPack) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      if constexpr (kPack == 2) {
        Vec<A, kLanes> even_g, odd_g, even_x, odd_x;
        load_pair<kLanes>(g + k + i * kLanes * 2, even_g, odd_g);
        load_pair<kLanes>(x + k + i * kLanes * 2, even_x, odd_x);
        sum[i] += even_g * even_x + odd_g * odd_x;
      } else {
        sum[i] += load<A, kLanes>(g + k + i * kLanes) * load<A, kLanes>(x + k + i * kLanes);
      }
    }
  }
  A lane[kSums];
  __builtin_memcpy(lane, sum, sizeof(lane));
  for (int64_t i = 0; k < d; ++k, ++i) lane[i % kSums] += widen(g[k]) * widen(x[k]);
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

}  // namespace mmssl::cpu
