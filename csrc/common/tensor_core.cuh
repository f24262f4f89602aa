// Instructions that CUDA C++ has no word for: tensor cores and what feeds them. Under
// MMSSL_EMULATE_CUDA each has a twin in emu/tensor.h, written from the tables of the PTX manual.
//
// Lane l of a warp holds, of an m16n8 result, the entries of rows l / 4 and l / 4 + 8 and columns
// 2 (l % 4) and 2 (l % 4) + 1.
#pragma once
#include "common/cuda_kernel.h"

#if defined(MMSSL_EMULATE_CUDA)
#include "emu/tensor.h"
#endif

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda {

// d (16, 8) += a (16, 16) b (16, 8), bfloat16 into float32.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma<2>(d, a, b, [](uint32_t word, int n) {
    return to_float(bf16{uint16_t(n == 0 ? word : word >> 16)});
  });
#endif
}

// d (16, 8) += a (16, 8) b (8, 8), TF32 into float32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma<1>(d, a, b, [](uint32_t word, int) {
    float v;
    memcpy(&v, &word, sizeof(v));
    return v;
  });
#endif
}

// Rounds to the 10 mantissa bits of TF32, to nearest.
__device__ __forceinline__ uint32_t to_tf32(float v) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(v));
  return out;
#else
  uint32_t word;
  memcpy(&word, &v, sizeof(word));
  return (word + 0x1000u) & 0xffffe000u;
#endif
}

// Loads four 8 x 8 tiles of bfloat16 from shared memory. Lane l gives the address of row l % 8 of
// tile l / 8, 16 bytes; word t of lane l becomes entries (l / 4, 2 (l % 4)) and the next of tile t,
// or with kTransposed entries (2 (l % 4), l / 4) and the one below.
template <bool kTransposed>
__device__ __forceinline__ void load_tiles(uint32_t (&words)[4], const bf16* row) {
#if defined(__CUDACC__)
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
#else
  emu::ldmatrix<kTransposed>(words, row);
#endif
}

// Starts copying 16 bytes from global to shared memory; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
#else
  emu::copy_async(shared, global);
#endif
}
// Ends a group of copies of this thread, which may be empty.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::commit_copies();
#endif
}
// Waits for all groups of this thread but the last kPending.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emu::wait_for_copies(kPending);
#endif
}

// 2^x to about 2^-22, subnormal numbers as zero: one instruction.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emu::ex2_ftz(x);
#endif
}

// 2^x on the multiply-add units, for -126 <= x < 127.5: 2^n p(x - n) with the nearest integer n and the
// polynomial of that degree whose relative error is least: 8e-5, 3e-6 or 8e-8. NaN gives NaN.
template <int kDegree>
__device__ __forceinline__ float polynomial_exp2(float x) {
  static_assert(kDegree >= 3 && kDegree <= 5);
  constexpr float kBy[3][6] = {
      {0.99992806f, 0.69326097f, 0.24261113f, 0.05517167f},
      {0.99999928f, 0.69312179f, 0.24024744f, 0.05591786f, 0.0095701021f},
      {1.00000012f, 0.69314694f, 0.24022120f, 0.05550713f, 0.0096755410f, 0.0013276472f}};
  constexpr float kRound = 12582912.0f + 127;  // 1.5 2^23 and the bias: the sum ends with the bits of n + 127
  const float rounded = x + kRound, rest = x - (rounded - kRound);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  bits <<= 23;
  float power, y = kBy[kDegree - 3][kDegree];
  memcpy(&power, &bits, sizeof(power));
#pragma unroll
  for (int n = kDegree - 1; n >= 0; --n) y = fmaf(y, rest, kBy[kDegree - 3][n]);
  return power * y;
}

// Both numbers rounded to bfloat16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return uint32_t(to_bf16(low).bits) | uint32_t(to_bf16(high).bits) << 16;
#endif
}

}  // namespace mmssl::cuda
#endif
