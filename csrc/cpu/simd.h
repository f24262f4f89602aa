// Vectors for the CPU kernels: GNU vector types, compiled three times and chosen at run time.
//
// A kernel is an always-inline body over a vector type; one entry function per level, each with its
// own target attribute, instantiates it. No file needs its own -m flags, nothing leaks between
// levels. (gcc 12 left to vectorise by itself keeps the accumulators in memory: 5x slower.)
#pragma once
#include <cstdint>

#include "common/bf16.h"

#define MMSSL_INLINE __attribute__((always_inline)) inline

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

// What this processor has, capped by ATEN_CPU_CAPABILITY (default, avx2, avx512) as in torch.
SimdLevel simd_level();
const char* simd_level_name();

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

// Unaligned load of kLanes stored numbers, widened to the type they are summed in.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> load(const A* p) {
  Vec<A, kLanes> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> load(const bf16* p) {
  if constexpr (kLanes == 1) {
    return to_float(*p);
  } else {
    Vec<uint16_t, kLanes> half;
    __builtin_memcpy(&half, p, sizeof(half));
    const auto word = __builtin_convertvector(half, Vec<uint32_t, kLanes>) << 16;
    Vec<float, kLanes> v;
    __builtin_memcpy(&v, &word, sizeof(v));
    return v;
  }
}

template <class A, int kLanes>
MMSSL_INLINE void store(A* p, Vec<A, kLanes> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class A, int kLanes>
MMSSL_INLINE void store(bf16* p, Vec<A, kLanes> v) {
  if constexpr (kLanes == 1) {
    *p = to_bf16(v);
  } else {  // to_bf16 lane by lane
    Vec<uint32_t, kLanes> word;
    __builtin_memcpy(&word, &v, sizeof(word));
    const auto rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    const auto is_nan = (word & 0x7fffffff) > 0x7f800000;
    const Vec<uint32_t, kLanes> quiet_nan = Vec<uint32_t, kLanes>{} + 0x7fc0;
    const auto half = __builtin_convertvector(is_nan ? quiet_nan : rounded, Vec<uint16_t, kLanes>);
    __builtin_memcpy(p, &half, sizeof(half));
  }
}

}  // namespace mmssl::cpu
