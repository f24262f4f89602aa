// Vectors for the CPU kernels: GNU vector types, compiled three times and chosen at run time.
//
// A kernel is an always-inline body over a vector type; one entry function per SIMD level, each
// with its own target attribute, instantiates it. No file needs its own -m flags, and nothing leaks
// between levels. (With automatic vectorization gcc 12 keeps the accumulators in memory: 5x
// slower.)
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/bf16.h"

#define MMSSL_INLINE __attribute__((always_inline)) inline
#define MMSSL_INLINE_LAMBDA __attribute__((always_inline))

#if defined(__x86_64__)
#define MMSSL_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,f16c")))
#define MMSSL_TARGET_AVX512                                                                 \
  __attribute__((target(                                                                    \
      "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2,f16c,prefer-vector-" \
      "width=512")))
#else
#define MMSSL_TARGET_AVX2
#define MMSSL_TARGET_AVX512
#endif

namespace mmssl::cpu {

enum class SimdLevel { kDefault = 0, kAvx2 = 1, kAvx512 = 2 };

// The level of this processor, capped by ATEN_CPU_CAPABILITY (default, avx2, avx512) as in torch.
SimdLevel simd_level();
const char* simd_level_name();

// The unit that multiplies bfloat16: AMX tiles, the dot product of AVX512-BF16 where it is twice as
// fast as float32 (AMD) or where ATEN_CPU_CAPABILITY=avx512 rules out AMX, or none, where float32
// is faster.
enum class Bf16Unit { kNone, kDot, kAmx };
Bf16Unit bf16_unit();

// Selects one of three functions, or tables of functions, by the level.
template <class T>
const T& at_level(const T& plain, const T& avx2, const T& avx512) {
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return avx512;
    case SimdLevel::kAvx2:
      return avx2;
    default:
      return plain;
  }
}

// A vector of kLanes numbers of type A. One lane is a plain number, which the same code accepts.
template <class A, int kLanes>
struct VecOf {
  typedef A type __attribute__((vector_size(kLanes * sizeof(A))));
};
template <class A>
struct VecOf<A, 1> {
  using type = A;
};
template <class A, int kLanes>
using Vec = typename VecOf<A, kLanes>::type;

// Unaligned load and store.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> load(const A* p) {
  Vec<A, kLanes> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class A, int kLanes>
MMSSL_INLINE void store(A* p, Vec<A, kLanes> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Square roots, correctly rounded at every level. GNU vector types have none, and a compiler makes
// no vector of calls that may set errno.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> square_root(Vec<A, kLanes> v) {
#if defined(__x86_64__)
  if constexpr (sizeof(v) > 16 && sizeof(A) == 4) {
    asm("vsqrtps %0, %0" : "+v"(v));
    return v;
  } else if constexpr (sizeof(v) > 16) {
    asm("vsqrtpd %0, %0" : "+v"(v));
    return v;
  }
#endif
  if constexpr (kLanes == 1) {
    return std::sqrt(v);
  } else {
    for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
    return v;
  }
}

// bf16 is loaded and stored two to a word: the even columns form one vector, the odd ones another.
// One shift or mask widens them, where gcc 12 makes four instructions of a plain conversion.
template <int kLanes>
MMSSL_INLINE void load_pair(const bf16* p, Vec<float, kLanes>& even, Vec<float, kLanes>& odd) {
  Vec<uint32_t, kLanes> word;
  __builtin_memcpy(&word, p, sizeof(word));
  const Vec<uint32_t, kLanes> low = word << 16, high = word & 0xffff0000u;
  __builtin_memcpy(&even, &low, sizeof(even));
  __builtin_memcpy(&odd, &high, sizeof(odd));
}

// The bits of to_bf16 in the upper half of each lane.
template <int kLanes>
MMSSL_INLINE Vec<uint32_t, kLanes> round_to_bf16(const Vec<float, kLanes>& v) {
  Vec<uint32_t, kLanes> word;
  __builtin_memcpy(&word, &v, sizeof(word));
  const Vec<uint32_t, kLanes> quiet_nan = Vec<uint32_t, kLanes>{} + 0x7fc00000u;
  const Vec<uint32_t, kLanes> rounded = (word + 0x7fffu + ((word >> 16) & 1u)) & 0xffff0000u;
  return (word & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

template <int kLanes>
MMSSL_INLINE void store_pair(bf16* p, const Vec<float, kLanes>& even,
                             const Vec<float, kLanes>& odd) {
  const Vec<uint32_t, kLanes> word =
      (round_to_bf16<kLanes>(even) >> 16) | round_to_bf16<kLanes>(odd);
  __builtin_memcpy(p, &word, sizeof(word));
}

template <int kLanes>
MMSSL_INLINE void store_pair(float* p, const Vec<float, kLanes>& even,
                             const Vec<float, kLanes>& odd) {
  float lanes[2][kLanes];
  __builtin_memcpy(lanes[0], &even, sizeof(even));
  __builtin_memcpy(lanes[1], &odd, sizeof(odd));
  for (int i = 0; i < 2 * kLanes; ++i) p[i] = lanes[i % 2][i / 2];
}

// A vector of stored numbers in the type that sums are kept in, in their order, and back.
template <class A, class T, int kLanes>
MMSSL_INLINE Vec<A, kLanes> load_as(const T* p) {
  if constexpr (std::is_same_v<T, bf16>) {
    if constexpr (kLanes == 1) {
      return to_float(*p);
    } else {
      Vec<uint16_t, kLanes> half;
      __builtin_memcpy(&half, p, sizeof(half));
      const Vec<uint32_t, kLanes> word =
          __builtin_convertvector(half, Vec<uint32_t, kLanes>) << 16;
      Vec<A, kLanes> v;
      __builtin_memcpy(&v, &word, sizeof(v));
      return v;
    }
  } else {
    return load<A, kLanes>(p);
  }
}

template <class A, class T, int kLanes>
MMSSL_INLINE void store_as(T* p, Vec<A, kLanes> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    if constexpr (kLanes == 1) {
      *p = to_bf16(v);
    } else {
      const Vec<uint16_t, kLanes> half =
          __builtin_convertvector(round_to_bf16<kLanes>(v) >> 16, Vec<uint16_t, kLanes>);
      __builtin_memcpy(p, &half, sizeof(half));
    }
  } else {
    store<A, kLanes>(p, v);
  }
}

}  // namespace mmssl::cpu
