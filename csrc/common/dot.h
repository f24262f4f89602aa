// A dot product with the same bits at every SIMD level.
#pragma once
#include <type_traits>

#include "common/simd.h"

namespace mmssl::cpu {

// <g, x> over d features in 64 / sizeof(A) running sums, whatever the width of a vector, so that
// all SIMD levels add in the same order: by halves, lane i and i + 8 first.
template <class T, class A, int kLanes, int kVecs = 64 / sizeof(A) / kLanes>
MMSSL_INLINE void running_sums(const T* g, const T* x, int64_t d, Vec<A, kLanes> (&sum)[kVecs]) {
  constexpr int kSums = kVecs * kLanes;
  constexpr int kPack = std::is_same_v<T, bf16> ? 2 : 1;  // columns that share a lane
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
  if (k == d) return;
  A lane[kSums];
  __builtin_memcpy(lane, sum, sizeof(lane));
  for (int64_t i = 0; k < d; ++k, ++i) lane[i % kSums] += widen(g[k]) * widen(x[k]);
  __builtin_memcpy(sum, lane, sizeof(lane));
}

// The dot product itself.
template <class T, class A, int kLanes>
MMSSL_INLINE A dot(const T* g, const T* x, int64_t d) {
  constexpr int kSums = 64 / sizeof(A);
  Vec<A, kLanes> sum[kSums / kLanes] = {};
  running_sums<T, A, kLanes>(g, x, d, sum);
  A lane[kSums];
  __builtin_memcpy(lane, sum, sizeof(lane));
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// The same up to the sum over the lanes, which sums_of_lanes computes for many vectors at once.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> dot_lanes(const A* g, const A* x, int64_t d) {
  constexpr int kVecs = 64 / sizeof(A) / kLanes;
  Vec<A, kLanes> sum[kVecs] = {};
  running_sums<A, A, kLanes>(g, x, d, sum);
  for (int n = kVecs / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
  }
  return sum[0];
}

// One step of adding up lanes: of the kCount vectors each holds kLanes / kPart / 2 groups of 2
// kPart lanes, one per dot product; afterwards half the vectors hold twice the groups of kPart.
template <class A, int kLanes, int kCount>
MMSSL_INLINE void halve_groups(Vec<A, kLanes>* v) {
  using Index = Vec<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>, kLanes>;
  constexpr int kPart = kCount / 2;
  Index low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / kPart, at = group * 2 * kPart + lane % kPart;  // < 2 kLanes
    low[lane] = at;
    high[lane] = at + kPart;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount / 2; ++i) {
    v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low) +
           __builtin_shuffle(v[2 * i], v[2 * i + 1], high);
  }
  if constexpr (kCount > 2) halve_groups<A, kLanes, kCount / 2>(v);
}

// Lane i of the result is the sum of the lanes of v[i], in the order of dot.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> sums_of_lanes(Vec<A, kLanes> (&v)[kLanes]) {
  halve_groups<A, kLanes, kLanes>(v);
  return v[0];
}

}  // namespace mmssl::cpu
