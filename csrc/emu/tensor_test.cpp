// The twins of common/tensor_core.cuh against plain loops. Fragments are loaded as the tables of the
// PTX manual for mma.m16n8k16 say, once entry by entry and once by ldmatrix, from copies that
// cp.async makes; so two independent descriptions of the layouts have to agree.
//   g++ -std=c++20 -DMMSSL_EMULATE_CUDA -Icsrc csrc/emu/tensor_test.cpp
#include <cmath>
#include <cstdio>
#include <vector>

#include "common/tensor_core.cuh"
#include "emu/numbers.h"

namespace mmssl::cuda {
namespace {

constexpr int kM = 16, kN = 8, kK = 16, kPitch = 24;  // kPitch: of 16 columns in shared memory

// c (16, 8) = a (16, 16) b (16, 8); b_t is b transposed.
template <bool kByTiles, bool kTransposed>
void product_kernel(const bf16* a, const bf16* b, const bf16* b_t, float* c) {
  alignas(16) __shared__ bf16 shared_a[kM * kPitch];
  alignas(16) __shared__ bf16 shared_b[kK * kPitch];
  const int lane = threadIdx.x;
  copy_async(shared_a + lane / 2 * kPitch + lane % 2 * 8, a + lane * 8);
  commit_copies();
  if (kTransposed && lane < kK) copy_async(shared_b + lane * kPitch, b + lane * 8);
  if (!kTransposed && lane < kK) {
    copy_async(shared_b + lane / 2 * kPitch + lane % 2 * 8, b_t + lane * 8);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  uint32_t fa[4], fb[4] = {};
  if (kByTiles) {
    load_tiles<false>(fa, shared_a + (lane / 8 % 2 * 8 + lane % 8) * kPitch + lane / 16 * 8);
    // Tiles 2 and 3 repeat 0 and 1: b has but two.
    const int tile = lane / 8 % 2;
    load_tiles<kTransposed>(fb, kTransposed ? shared_b + (tile * 8 + lane % 8) * kPitch
                                            : shared_b + lane % 8 * kPitch + tile * 8);
  } else {
    const auto word = [](bf16 low, bf16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; };
    for (int i = 0; i < 4; ++i) {
      const bf16* at = a + (lane / 4 + i % 2 * 8) * kK + lane % 4 * 2 + i / 2 * 8;
      fa[i] = word(at[0], at[1]);
    }
    for (int i = 0; i < 2; ++i) {
      const bf16* at = b + (lane % 4 * 2 + i * 8) * kN + lane / 4;
      fb[i] = word(at[0], at[kN]);
    }
  }
  float sum[4] = {};
  mma_bf16(sum, fa, {fb[0], fb[1]});
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * kN + lane % 4 * 2 + i % 2] = sum[i];
}

// The same for c (16, 8) = a (16, 8) b (8, 8) in TF32.
void tf32_kernel(const float* a, const float* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    fa[i] = to_tf32(a[(lane / 4 + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4]);
  }
  for (int i = 0; i < 2; ++i) fb[i] = to_tf32(b[(lane % 4 + i * 4) * kN + lane / 4]);
  float sum[4] = {};
  mma_tf32(sum, fa, fb);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * kN + lane % 4 * 2 + i % 2] = sum[i];
}

// What was copied in the group before the last is there, what comes later is not.
void copies_kernel(const float* from, float* seen) {
  alignas(16) __shared__ float to[3][4];
  for (int n = 0; n < 3; ++n) {
    copy_async(to[n], from + 4 * n);
    commit_copies();
  }
  wait_for_copies<1>();
  for (int n = 0; n < 3; ++n) seen[n] = to[n][1];
  wait_for_copies<0>();
  seen[3] = to[2][1];
}

template <class V>
bool close(const std::vector<float>& c, const std::vector<V>& a, const std::vector<V>& b, int depth,
           double tolerance) {
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      double sum = 0;
      for (int k = 0; k < depth; ++k) {
        sum += test::as_double(a[i * depth + k]) * test::as_double(b[k * kN + j]);
      }
      if (!(std::abs(sum - c[i * kN + j]) <= tolerance)) return false;
    }
  }
  return true;
}

int run() {
  std::mt19937 random(5);
  const auto a = test::normal<bf16>(kM * kK, random), b = test::normal<bf16>(kK * kN, random);
  std::vector<bf16> b_t(kK * kN);
  for (int k = 0; k < kK; ++k) {
    for (int j = 0; j < kN; ++j) b_t[j * kK + k] = b[k * kN + j];
  }
  int wrong = 0;
  const auto expect = [&](bool right, const char* what) {
    if (!right) std::printf("wrong: %s\n", what);
    wrong += !right;
  };
  const auto product = [&](auto kernel, const char* what) {
    std::vector<float> c(kM * kN);
    MMSSL_LAUNCH(kernel, 1, 32, nullptr, a.data(), b.data(), b_t.data(), c.data());
    expect(close(c, a, b, kK, 1e-5), what);
  };
  product(product_kernel<false, false>, "mma by the tables");
  product(product_kernel<true, false>, "mma by ldmatrix");
  product(product_kernel<true, true>, "mma by ldmatrix.trans");

  const auto wide_a = test::normal<float>(kM * 8, random), wide_b = test::normal<float>(8 * kN, random);
  std::vector<float> c(kM * kN);
  MMSSL_LAUNCH(tf32_kernel, 1, 32, nullptr, wide_a.data(), wide_b.data(), c.data());
  expect(close(c, wide_a, wide_b, 8, 2e-2), "mma in TF32");
  expect(!close(c, wide_a, wide_b, 8, 1e-6), "TF32 is rounded");

  alignas(16) float from[12], seen[4];
  for (int n = 0; n < 12; ++n) from[n] = float(n);
  MMSSL_LAUNCH(copies_kernel, 1, 1, nullptr, from, seen);
  expect(seen[0] == 1 && seen[1] == 5 && seen[2] != seen[2] && seen[3] == 9, "cp.async");

  expect(fast_exp2(3.0f) == 8 && fast_exp2(-INFINITY) == 0 && fast_exp2(-130.0f) == 0, "ex2");
  expect(std::isnan(fast_exp2(NAN)) && fast_exp2(200.0f) == INFINITY, "ex2 of NaN and overflow");
  double worst[3] = {};
  for (float x = -126; x < 127.4f; x += 0.0037f) {
    const double y = std::exp2(double(x));
    worst[0] = std::max(worst[0], std::abs(polynomial_exp2<3>(x) / y - 1));
    worst[1] = std::max(worst[1], std::abs(polynomial_exp2<4>(x) / y - 1));
    worst[2] = std::max(worst[2], std::abs(polynomial_exp2<5>(x) / y - 1));
  }
  expect(worst[0] < 8e-5 && worst[1] < 3e-6 && worst[2] < 3e-7, "2^x by polynomials");
  expect(std::isnan(polynomial_exp2<4>(NAN)), "2^NaN by polynomials");
  const uint32_t packed = pack_bf16(1.0f, -2.0f);
  expect(packed == 0xc0003f80u, "cvt.rn.bf16x2");
  return wrong;
}

}  // namespace
}  // namespace mmssl::cuda

int main() {
  if (mmssl::cuda::run() != 0) return 1;
  std::printf("ok\n");
  return 0;
}
