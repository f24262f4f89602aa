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
  mmssl::cuda::launch_keep_masks({count, 1, seeds.data(), {n}, {limit}, {keep}}, nullptr);
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

// Two layers have the masks that each has alone; dropped columns those of their blocks.
int check_layers(int64_t count, int64_t first, int64_t second) {
  std::vector<int64_t> seeds;
  for (int64_t k = 0; k < 2 * count; ++k) seeds.push_back(1000 - 77 * k);
  const int64_t n[] = {first, second};
  std::vector<uint32_t> memory[2];
  mmssl::cuda::KeepMasks a{count, 2, seeds.data(), {first, second}, {-5000, 20000}, {}};
  for (int l = 0; l < 2; ++l) {
    memory[l].resize(count * n[l] / 4 + 1);
    a.keep[l] = reinterpret_cast<uint8_t*>(memory[l].data());
  }
  mmssl::cuda::launch_keep_masks(a, nullptr);
  int wrong = 0;
  for (int l = 0; l < 2; ++l) {
    for (int64_t k = 0; k < count; ++k) {
      uint64_t state = uint64_t(seeds[2 * k + l]), word = 0;
      for (int64_t i = 0; i < n[l]; ++i) {
        if (i % 4 == 0) word = next(state);
        wrong += a.keep[l][k * n[l] + i] != (int16_t(uint16_t(word >> (16 * (i % 4)))) >= a.limit[l]);
      }
    }
  }
  std::vector<double> x(first * count * second, 2), bias(count * second), out(x.size());
  for (size_t c = 0; c < bias.size(); ++c) bias[c] = double(c);
  mmssl::cuda::DropColumns<double> drop{first, count, second, x.data(), {}, seeds.data(), -9, 0.5,
                                        out.data()};
  for (int64_t k = 0; k < count; ++k) drop.bias[k] = bias.data() + k * second;
  mmssl::cuda::launch_drop_columns(drop, nullptr);
  for (int64_t k = 0; k < count; ++k) {
    uint64_t state = uint64_t(seeds[k]), word = 0;
    for (int64_t i = 0; i < first * second; ++i) {
      if (i % 4 == 0) word = next(state);
      const int64_t column = k * second + i % second, at = i / second * count * second + column;
      const bool kept = int16_t(uint16_t(word >> (16 * (i % 4)))) >= -9;
      wrong += out[at] != (kept ? 0.5 * (2 + double(column)) : 0);
    }
  }
  if (wrong > 0) std::printf("%d rounds of layers: %d wrong\n", int(count), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = check_layers(1, 5, 3) + check_layers(3, 130, 33) + check_layers(2, 0, 4);
  for (int64_t n : {0, 1, 3, 4, 7, 1023, 1024, 5000}) {
    for (int16_t limit : {-32768, -13107, 0, 32767}) {
      wrong += check({0x123456789abcdef}, n, limit) + check({3, -7, 1 << 20}, n, limit);
    }
  }
  std::printf(wrong == 0 ? "emulated CUDA keep_mask: ok\n" : "emulated CUDA keep_mask: FAILED\n");
  return wrong != 0;
}
