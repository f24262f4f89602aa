// Warp-level products of tiles in shared memory: tensor cores by mma.sync, or multiply-adds.
//
// A warp owns 16 rows of the result. Lane l holds, for every 8 columns, the entries of rows l / 4 and
// l / 4 + 8 and columns 2 (l % 4) and 2 (l % 4) + 1: the layout of mma.sync, used by all of them.
#pragma once
#include "common/bf16.h"
#include "common/cuda_launch.h"

namespace mmssl::cuda {

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(bf16 v) { return to_float(v); }
__device__ __forceinline__ void narrow(float v, float& out) { out = v; }
__device__ __forceinline__ void narrow(double v, double& out) { out = v; }
__device__ __forceinline__ void narrow(float v, bf16& out) { out = to_bf16(v); }

#if !defined(__CUDACC__)
// What the lanes of each warp hand to the emulated tensor core.
struct EmulatedOperands {
  uint32_t a[4], b[2];
};
inline EmulatedOperands (&emulated_operands())[32][32] {
  static EmulatedOperands operands[32][32];
  return operands;
}
// d += a b for an m16n8 tile with kPerWord entries per 32-bit register: the layout of the PTX manual,
// "Matrix Fragments for mma.m16n8k16 / m16n8k8".
template <int kPerWord, class Get>
inline void emulate_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Get get) {
  auto& lanes = emulated_operands()[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32, row = lane / 4;
  for (int i = 0; i < 4; ++i) lanes[lane].a[i] = a[i];
  for (int i = 0; i < 2; ++i) lanes[lane].b[i] = b[i];
  emu::wait(emu::State::kAtWarpBarrier);
  for (int part = 0; part < 2; ++part) {     // registers 0, 1 and 2, 3 of a; 0 and 1 of b
    for (unsigned group = 0; group < 4; ++group) {
      for (int n = 0; n < kPerWord; ++n) {
        for (int i = 0; i < 4; ++i) {
          const unsigned column = lane % 4 * 2 + i % 2;
          d[i] += get(lanes[row * 4 + group].a[part * 2 + i / 2], n) *
                  get(lanes[column * 4 + group].b[part], n);
        }
      }
    }
  }
  emu::wait(emu::State::kAtWarpBarrier);
}
inline void __syncwarp() { emu::wait(emu::State::kAtWarpBarrier); }
#endif

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulate_mma<2>(d, a, b, [](uint32_t word, int n) {
    return to_float(bf16{uint16_t(n == 0 ? word : word >> 16)});
  });
#endif
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulate_mma<1>(d, a, b, [](uint32_t word, int) {
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

// Entries p[0] and p[step] as one word; neighbours are loaded at once (tiles are aligned for that).
__device__ __forceinline__ uint32_t pair(const bf16* p, int step) {
  if (step != 1) return uint32_t(p[0].bits) | uint32_t(p[step].bits) << 16;
  uint32_t word;
  memcpy(&word, __builtin_assume_aligned(p, 4), sizeof(word));
  return word;
}

// sum[t] += a (16, kDepth) b (kDepth, 8 kTiles), a[row * lda + k], b[k * b_depth + column * b_column].
struct FullProduct {
  template <int kTiles, int kDepth, class S, class A>
  static __device__ __forceinline__ void add(A (&sum)[kTiles][4], const S* a, int lda, const S* b,
                                             int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      const A top = widen(a[row * lda + k]), bottom = widen(a[(row + 8) * lda + k]);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const S* from = b + k * b_depth + (t * 8 + column) * b_column;
        const A left = widen(from[0]), right = widen(from[b_column]);
        sum[t][0] += top * left;
        sum[t][1] += top * right;
        sum[t][2] += bottom * left;
        sum[t][3] += bottom * right;
      }
    }
  }
};

struct Tf32Product {
  template <int kTiles, int kDepth>
  static __device__ __forceinline__ void add(float (&sum)[kTiles][4], const float* a, int lda,
                                             const float* b, int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      const float* from = a + group * lda + k + part;
      const uint32_t fa[4] = {to_tf32(from[0]), to_tf32(from[8 * lda]), to_tf32(from[4]),
                              to_tf32(from[8 * lda + 4])};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float* p = b + (k + part) * b_depth + (t * 8 + group) * b_column;
        const uint32_t fb[2] = {to_tf32(p[0]), to_tf32(p[4 * b_depth])};
        mma_tf32(sum[t], fa, fb);
      }
    }
  }
};

struct Bf16Product {
  template <int kTiles, int kDepth>
  static __device__ __forceinline__ void add(float (&sum)[kTiles][4], const bf16* a, int lda,
                                             const bf16* b, int b_depth, int b_column) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const bf16* from = a + group * lda + k + part;
      const bf16* below = from + 8 * lda;
      const uint32_t fa[4] = {pair(from, 1), pair(below, 1), pair(from + 8, 1), pair(below + 8, 1)};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const bf16* p = b + (k + part) * b_depth + (t * 8 + group) * b_column;
        const bf16* q = p + 8 * b_depth;
        const uint32_t fb[2] = {pair(p, b_depth), pair(q, b_depth)};
        mma_bf16(sum[t], fa, fb);
      }
    }
  }
};

}  // namespace mmssl::cuda
