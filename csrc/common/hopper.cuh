// Instructions that only compute capability 9.0 has (sm_90a): products of a warpgroup, bulk copies,
// barriers in shared memory. Under MMSSL_EMULATE_CUDA each has a twin in emu/hopper.h.
#pragma once
#include "common/tensor_core.cuh"

#if defined(MMSSL_EMULATE_CUDA)
#include "emu/hopper.h"
#endif

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda {

constexpr int kWarpgroup = 128;  // threads that multiply together

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}
#else
using emu::shared_address;
#endif

// An mbarrier in shared memory. A phase ends after `arrivals` arrivals and the bytes that they announced.
struct Barrier {
  uint64_t word;

  __device__ __forceinline__ void init(int arrivals) {
#if defined(__CUDACC__)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals)
                 : "memory");
#else
    emu::init_barrier(&word, arrivals);
#endif
  }
  __device__ __forceinline__ void arrive() {
#if defined(__CUDACC__)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
#else
    emu::arrive(&word, 0);
#endif
  }
  // Arrives, and announces bytes of bulk copies.
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) {
#if defined(__CUDACC__)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
                 "r"(bytes)
                 : "memory");
#else
    emu::arrive(&word, bytes);
#endif
  }
  // Waits until the phase of this parity has ended: 0 for the first, 1 for the second and so on.
  __device__ __forceinline__ void wait(int parity) {
#if defined(__CUDACC__)
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n\t"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t"
        "}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#else
    emu::wait_for_phase(&word, parity);
#endif
  }
};

// Makes barriers that this thread has initialized known to bulk copies. Others see them after
// __syncthreads().
__device__ __forceinline__ void publish_barriers() {
#if defined(__CUDACC__)
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Starts copying bytes from global to shared memory; addresses and size are multiples of 16. They
// count for a barrier, to which they were announced.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
#else
  emu::copy_bulk(shared, global, bytes, &barrier.word);
#endif
}

// How the 16-byte pieces of a line of shared memory are permuted: the bits of an address from 4 on
// are combined with as many from 7 on.
enum class Swizzle : uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// An operand of a product in shared memory. `stride`: bytes from 8 of its rows to the next 8 (from
// 8 steps of k to the next 8 where it is transposed). `leading`: bytes to the next 8 steps of k without a
// swizzle, and to the next line of rows where it is transposed.
__device__ __forceinline__ uint64_t descriptor(const void* shared, uint32_t stride,
                                               Swizzle swizzle = Swizzle::k128, uint32_t leading = 16) {
  return uint64_t(shared_address(shared) >> 4 & 0x3fff) | uint64_t(leading >> 4) << 16 |
         uint64_t(stride >> 4) << 32 | uint64_t(swizzle) << 62;
}

// 64 x 64 results of a warpgroup: warp w holds rows 16 w to 16 w + 15 as 4 x 2 tiles of mma.m16n8.
using Accumulator = float[4][2][4];

// Before the first product after the results of others were waited for: registers are written.
__device__ __forceinline__ void fence_products() {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emu::fiber().fenced = true;
#endif
}
// Ends a group of products.
__device__ __forceinline__ void commit_products() {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emu::commit_products();
#endif
}
// Waits for all groups but the last kPending.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  emu::wait_for_products(kPending);
#endif
}
// Keeps the compiler from reading or writing results before this point: it does not know that the
// instructions above are about them.
__device__ __forceinline__ void pin([[maybe_unused]] Accumulator& d) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(d[i / 8][i / 4 % 2][i % 4])::"memory");
#endif
}

#if defined(__CUDACC__)
#define MMSSL_FOUR(mode, t) mode(t[0]), mode(t[1]), mode(t[2]), mode(t[3])
#define MMSSL_RESULTS(mode, d)                                                                      \
  MMSSL_FOUR(mode, d[0][0]), MMSSL_FOUR(mode, d[0][1]), MMSSL_FOUR(mode, d[1][0]),                  \
      MMSSL_FOUR(mode, d[1][1]), MMSSL_FOUR(mode, d[2][0]), MMSSL_FOUR(mode, d[2][1]),              \
      MMSSL_FOUR(mode, d[3][0]), MMSSL_FOUR(mode, d[3][1])
// `operands`: a, b and what comes before the transposition of b; `add`: whether to keep d.
#define MMSSL_WGMMA(add, operands)                                                                   \
  "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, " add ", 0;\n\t"                                      \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "                                            \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"  \
  "%26,%27,%28,%29,%30,%31}, " operands ";\n\t}"
#endif

// Starts d (64, 64) = a (64, 16) b (16, 64), bfloat16 into float32. a: the words of mma.m16n8k16 in
// registers, or a descriptor of 64 rows with k in a row. b: a descriptor of 64 columns with k in a row,
// or with kTransposed of 16 rows with the columns in a row.
template <bool kTransposed>
__device__ __forceinline__ void multiply_async(Accumulator& d, const uint32_t (&a)[4], uint64_t b) {
#if defined(__CUDACC__)
  asm volatile(MMSSL_WGMMA("0", "{%32,%33,%34,%35}, %36, add, 1, 1, %37")
               : MMSSL_RESULTS("=f", d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(kTransposed)));
#else
  emu::start_product(&d[0][0][0], a, 0, b, kTransposed, false);
#endif
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_async(Accumulator& d, uint64_t a, uint64_t b) {
#if defined(__CUDACC__)
  asm volatile(MMSSL_WGMMA("0", "%32, %33, add, 1, 1, 0, %34")
               : MMSSL_RESULTS("=f", d)
               : "l"(a), "l"(b), "n"(int(kTransposed)));
#else
  emu::start_product(&d[0][0][0], nullptr, a, b, kTransposed, false);
#endif
}

// The same for d += a b; for d = a b without `add`, where d may hold anything. A sum that is set to zero
// before a loop of products would make the compiler run them one by one.
template <bool kTransposed>
__device__ __forceinline__ void multiply_add_async(Accumulator& d, const uint32_t (&a)[4], uint64_t b,
                                                   bool add = true) {
#if defined(__CUDACC__)
  asm volatile(MMSSL_WGMMA("%38", "{%32,%33,%34,%35}, %36, add, 1, 1, %37")
               : MMSSL_RESULTS("+f", d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(kTransposed)), "r"(int(add)));
#else
  emu::start_product(&d[0][0][0], a, 0, b, kTransposed, add);
#endif
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_add_async(Accumulator& d, uint64_t a, uint64_t b,
                                                   bool add = true) {
#if defined(__CUDACC__)
  asm volatile(MMSSL_WGMMA("%35", "%32, %33, add, 1, 1, 0, %34")
               : MMSSL_RESULTS("+f", d)
               : "l"(a), "l"(b), "n"(int(kTransposed)), "r"(int(add)));
#else
  emu::start_product(&d[0][0][0], nullptr, a, b, kTransposed, add);
#endif
}

}  // namespace mmssl::cuda
#endif
