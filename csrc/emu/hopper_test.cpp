// The twins of common/hopper.cuh against plain loops. Shared memory is filled as the PTX manual draws
// the canonical layouts, piece by piece, and not by the permutation of address bits that the twins use; so
// two independent descriptions have to agree.
//   g++ -std=c++20 -DMMSSL_EMULATE_CUDA -Icsrc csrc/emu/hopper_test.cpp
#include <cmath>
#include <cstdio>
#include <vector>

#include "common/hopper.cuh"
#include "emu/numbers.h"

namespace mmssl::cuda {
namespace {

constexpr int kM = 64, kN = 64, kK = 64;  // four products along k
constexpr int kOperand = kM * kK, kBytes = 2 * kOperand * 2;

// Where entry (row, k) of an operand belongs, in entries: lines of `line` entries, of which the
// pieces of 8 are permuted by the number of the line.
struct Place {
  Swizzle swizzle;
  bool transposed;  // rows, not k, are neighbors

  int pieces() const {  // of 8 entries in a line
    return swizzle == Swizzle::k128 ? 8 : swizzle == Swizzle::k64 ? 4 : swizzle == Swizzle::k32 ? 2 : 1;
  }
  int operator()(int row, int k) const {
    const int across = transposed ? row : k, along = transposed ? k : row;
    const int line = 8 * pieces(), lines = transposed ? kK : kM;
    // The pieces of lines 0 to 7 of 128 bytes: XOR with the line. Shorter lines share 128 bytes.
    const int permuted = across % line / 8 ^ along % 8 * pieces() / 8;
    return across / line * lines * line + along * line + permuted * 8 + across % 8;
  }
  // For descriptors: bytes between groups of 8 lines, and between lines of a row or of k.
  uint32_t stride() const { return 8 * pieces() * 16; }
  uint32_t leading() const { return (transposed ? kK : kM) * pieces() * 16; }
  // The two change places in the unswizzled layout with rows as neighbors.
  uint64_t of(const bf16* base, int k) const {
    const bf16* at = base + (transposed ? k * 8 * pieces() : (*this)(0, k));
    if (!transposed && swizzle != Swizzle::kNone) {  // within a line: no permutation of the first
      at = base + k / (8 * pieces()) * kM * 8 * pieces() + k % (8 * pieces());
    }
    if (transposed && swizzle == Swizzle::kNone) return descriptor(at, leading(), swizzle, stride());
    return descriptor(at, stride(), swizzle, leading());
  }
};

// c (64, 64) = a (64, 64) b (64, 64), which are in shared memory as `image` says.
template <bool kFromRegisters, bool kTransposed>
void product_kernel(const bf16* image, Place place_a, Place place_b, const bf16* a, float* c) {
  MMSSL_DYNAMIC_SHARED(base);
  bf16* const own = reinterpret_cast<bf16*>(base);
  Barrier* const barrier = reinterpret_cast<Barrier*>(base + kBytes);
  if (threadIdx.x == 0) barrier->init(1);
  publish_barriers();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier->arrive_and_expect(kBytes);
    copy_bulk(own, image, kBytes / 2, *barrier);
    copy_bulk(own + kOperand, image + kOperand, kBytes / 2, *barrier);
  }
  barrier->wait(0);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  Accumulator d;
  fence_products();
  for (int k = 0; k < kK; k += 16) {
    const uint64_t b = place_b.of(own + kOperand, k);
    if (kFromRegisters) {
      uint32_t words[4];
      for (int i = 0; i < 4; ++i) {
        memcpy(words + i, a + (row + i % 2 * 8) * kK + k + lane % 4 * 2 + i / 2 * 8, 4);
      }
      multiply_add_async<kTransposed>(d, words, b, k > 0);
    } else if (k == 0) {
      multiply_async<kTransposed>(d, place_a.of(own, k), b);
    } else {
      multiply_add_async<kTransposed>(d, place_a.of(own, k), b);
    }
  }
  commit_products();
  if (!std::isnan(d[0][0][0])) c[0] = NAN;  // nothing is there yet
  wait_for_products<0>();
  pin(d);
  for (int i = 0; i < 32; ++i) {
    c[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i / 8][i / 4 % 2][i % 4];
  }
}

// A ring of two: thread 32 copies six numbers, warp 0 reads them. `seen` gets them in order.
void ring_kernel(const float* from, float* seen) {
  MMSSL_DYNAMIC_SHARED(base);
  float* const stage = reinterpret_cast<float*>(base);
  Barrier* const full = reinterpret_cast<Barrier*>(base + 32);
  Barrier* const empty = full + 2;
  for (int n = 0; threadIdx.x == 0 && n < 2; ++n) full[n].init(1), empty[n].init(32);
  publish_barriers();
  __syncthreads();
  for (int n = 0; n < 6; ++n) {
    if (threadIdx.x == 32) {
      empty[n % 2].wait(n / 2 % 2 ^ 1);
      full[n % 2].arrive_and_expect(16);
      copy_bulk(stage + n % 2 * 4, from + n * 4, 16, full[n % 2]);
    } else if (threadIdx.x < 32) {
      full[n % 2].wait(n / 2 % 2);
      if (threadIdx.x == unsigned(n)) seen[n] = stage[n % 2 * 4 + 1];
      empty[n % 2].arrive();
    }
  }
}

int run() {
  std::mt19937 random(5);
  const auto a = test::normal<bf16>(kM * kK, random), b = test::normal<bf16>(kN * kK, random);  // b^T
  int wrong = 0;
  const auto product = [&](Place place_a, Place place_b, auto kernel, const char* what) {
    std::vector<bf16> memory(2 * kOperand + 8);
    bf16* const image = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16 / 2;
    for (int row = 0; row < kM; ++row) {
      for (int k = 0; k < kK; ++k) {
        image[place_a(row, k)] = a[row * kK + k];
        image[kOperand + place_b(row, k)] = b[row * kK + k];
      }
    }
    std::vector<float> c(kM * kN);
    MMSSL_LAUNCH_SHARED(kernel, 1, kWarpgroup, kBytes + sizeof(Barrier), nullptr, image, place_a, place_b,
                        a.data(), c.data());
    double error = 0;
    for (int i = 0; i < kM * kN; ++i) {
      double sum = -double(c[i]);
      for (int k = 0; k < kK; ++k) {
        sum += double(to_float(a[i / kN * kK + k])) * double(to_float(b[i % kN * kK + k]));
      }
      error = std::isnan(sum) ? HUGE_VAL : std::max(error, std::abs(sum));
    }
    if (!(error < 5e-5)) std::printf("wrong: %s, swizzle %d\n", what, int(place_b.swizzle)), ++wrong;
  };
  for (const Swizzle swizzle : {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128}) {
    const Place rows{swizzle, false}, columns{swizzle, true};
    product(rows, rows, product_kernel<false, false>, "from shared memory");
    product(rows, rows, product_kernel<true, false>, "from registers");
    product(rows, columns, product_kernel<false, true>, "from shared memory, transposed");
    product(rows, columns, product_kernel<true, true>, "from registers, transposed");
  }
  alignas(16) float from[24], seen[6];
  for (int n = 0; n < 24; ++n) from[n] = float(n);
  MMSSL_LAUNCH_SHARED(ring_kernel, 1, 64, 32 + 4 * sizeof(Barrier), nullptr, from, seen);
  for (int n = 0; n < 6; ++n) {
    if (seen[n] != float(4 * n + 1)) std::printf("wrong: the ring, %d\n", n), ++wrong;
  }
  return wrong;
}

}  // namespace
}  // namespace mmssl::cuda

int main() {
  if (mmssl::cuda::run() != 0) return 1;
  std::printf("ok\n");
  return 0;
}
