// The CUDA kernels of sample_bpr, run on the CPU against a plain shuffle and plain lists.
//   cd csrc/ops/sampling && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "ops/sampling/kernels.cuh"

namespace {

// Returns the number of wrong results. draws: "uniform", or all the same value in [0, 1).
int check(int64_t users, int64_t items, int64_t batch, double same = -1) {
  std::mt19937 random(9);
  std::vector<int64_t> rowptr{0}, candidates;
  std::vector<int32_t> col;
  for (int64_t u = 0; u < users; ++u) {
    for (int64_t i = 0; i < items; ++i) {
      if (random() % 3 == 0) col.push_back(int32_t(i));
    }
    rowptr.push_back(int64_t(col.size()));
    const int64_t degree = rowptr[u + 1] - rowptr[u];
    if (degree > 0 && degree < items) candidates.push_back(u);
  }
  batch = std::min(batch, int64_t(candidates.size()));
  std::vector<double> draw(3 * batch);
  std::uniform_real_distribution<double> uniform;
  for (double& d : draw) d = same < 0 ? uniform(random) : same;
  const mmssl::SampleArgs a{draw.data(), candidates.data(), rowptr.data(),
                            col.data(),  int64_t(candidates.size()), users,
                            items,       int64_t(col.size()),        batch};
  std::vector<int64_t> user(batch, -7), pos(batch, -7), neg(batch, -7);
  std::vector<uint64_t> scratch(mmssl::cuda::sample_bpr_scratch(batch) / 8 + 1);
  mmssl::cuda::launch_sample_bpr(a, user.data(), pos.data(), neg.data(), scratch.data(), nullptr);

  int wrong = 0;
  std::vector<int64_t> order(candidates);
  for (int64_t b = 0; b < batch; ++b) {
    std::swap(order[b], order[b + int64_t(draw[b] * double(order.size() - b))]);
    const int64_t u = order[b], degree = rowptr[u + 1] - rowptr[u];
    std::vector<int64_t> missing;
    for (int64_t i = 0; i < items; ++i) {
      const auto begin = col.begin() + rowptr[u], end = col.begin() + rowptr[u + 1];
      if (std::find(begin, end, int32_t(i)) == end) missing.push_back(i);
    }
    wrong += user[b] != u;
    wrong += pos[b] != col[rowptr[u] + int64_t(draw[batch + b] * double(degree))];
    wrong += neg[b] != missing[int64_t(draw[2 * batch + b] * double(missing.size()))];
  }
  if (wrong > 0) std::printf("%d users, %d items, B = %d: %d wrong\n", int(users), int(items), int(batch), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t users : {1, 40, 700}) {
    for (int64_t batch : {0, 1, 30, 700}) wrong += check(users, 11, batch);
  }
  for (double same : {0.0, 0.5, 1 - 1e-16}) wrong += check(300, 7, 300, same);  // long chains and lists
  std::printf(wrong == 0 ? "emulated CUDA sampling: ok\n" : "emulated CUDA sampling: FAILED\n");
  return wrong != 0;
}
