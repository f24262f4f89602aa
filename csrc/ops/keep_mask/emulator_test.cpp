// The CUDA kernel of keep_mask, run on the CPU against its definition.
//   cd csrc/ops/keep_mask && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <cstdio>
#include <vector>

#include "ops/keep_mask/kernels.cuh"

namespace {

// SplitMix64 as published: the state grows by a constant, its bits are mixed.
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int check(const std::vector<int64_t>& seeds, int64_t n, int16_t limit) {
  const int64_t count = int64_t(seeds.size());
  std::vector<uint32_t> words((count * n + 3) / 4 + 1, 0xffffffffu);
  uint8_t* keep = reinterpret_cast<uint8_t*>(words.data());
  mmssl::cuda::launch_keep_mask(seeds.data(), count, limit, keep, n, nullptr);
  int wrong = keep[count * n] != 0xff;  // nothing is written behind the end
  for (int64_t k = 0; k < count; ++k) {
    uint64_t state = uint64_t(seeds[k]), word = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (i % 4 == 0) word = next(state);
      wrong += keep[k * n + i] != (int16_t(uint16_t(word >> (16 * (i % 4)))) >= limit ? 1 : 0);
    }
  }
  if (wrong > 0) std::printf("n = %d, limit %d: %d wrong\n", int(n), int(limit), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t n : {0, 1, 3, 4, 7, 1023, 1024, 5000}) {
    for (int16_t limit : {-32768, -13107, 0, 32767}) {
      wrong += check({0x123456789abcdef}, n, limit) + check({3, -7, 1 << 20}, n, limit);
    }
  }
  std::printf(wrong == 0 ? "emulated CUDA keep_mask: ok\n" : "emulated CUDA keep_mask: FAILED\n");
  return wrong != 0;
}
