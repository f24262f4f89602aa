// The CUDA kernel of masked_topk, run on the CPU against a sort.
//   cd csrc/ops/topk && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/topk/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::assign;

struct Case {
  const char* name;
  int64_t users, items, d, k, batch;  // batch 0: all users in order
  bool exclude, special;              // special: NaN, infinities and zeros of both signs
};

// Returns the number of wrong positions. The numbers are whole and small, so that sums are exact
// and many scores equal.
template <class T, class A>
int check(const Case& c, int processors) {
  std::mt19937 random(7);
  std::vector<T> user(c.users * c.d), item(c.items * c.d);
  for (T& v : user) assign(double(random() % 5) - 2, v);
  for (T& v : item) assign(double(random() % 5) - 2, v);
  if (c.special) {
    const double values[] = {NAN, -NAN, INFINITY, -INFINITY, -0.0};
    for (int64_t i = 0; i < c.items; i += 3) assign(values[random() % 5], item[i * c.d]);
  }
  std::vector<int64_t> users(c.batch), rowptr{0};
  for (int64_t& u : users) u = int64_t(random() % (c.users + 1));  // one is out of range
  std::vector<int32_t> col;
  for (int64_t u = 0; u < c.users; ++u) {
    const int64_t degree = u == 1 ? c.items : int64_t(random() % (c.items / 2 + 1));
    for (int64_t n = 0; n < degree; ++n) {
      col.push_back(int32_t(u == 1 ? n : int64_t(random() % c.items)));  // in any order, repeated
    }
    if (emu::races::kDetected) {  // a repeated column is masked by two lanes, with one value
      const auto own = col.begin() + rowptr.back();
      std::sort(own, col.end());
      col.erase(std::unique(own, col.end()), col.end());
    }
    rowptr.push_back(int64_t(col.size()));
  }
  const int64_t batch = c.batch == 0 ? c.users : c.batch;
  std::vector<A> scores(batch * c.k + 1, A(123));
  std::vector<int64_t> items(batch * c.k + 1, 123);
  const mmssl::TopkArgs<T, A> a{c.users,     c.items,
                                batch,       c.d,
                                c.k,         user.data(),
                                item.data(), c.batch == 0 ? nullptr : users.data(),
                                c.exclude ? rowptr.data() : nullptr,
                                c.exclude ? col.data() : nullptr,
                                scores.data(), items.data()};
  std::vector<double> scratch(mmssl::cuda::topk_scratch(a, processors) / 8 + 1);
  mmssl::cuda::launch_masked_topk(a, scratch.data(), processors, nullptr);

  int wrong = scores.back() != 123 || items.back() != 123;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t u = c.batch == 0 ? b : users[b];
    std::vector<std::pair<double, int64_t>> want;  // (-score, item)
    for (int64_t i = 0; u < c.users && i < c.items; ++i) {
      double score = 0;
      for (int64_t n = 0; n < c.d; ++n) score += as_double(user[u * c.d + n]) * as_double(item[i * c.d + n]);
      const auto own = col.begin() + rowptr[u], end = col.begin() + rowptr[u + 1];
      if (c.exclude && std::find(own, end, int32_t(i)) != end) continue;
      if (score > -INFINITY) want.push_back({-score, i});
    }
    std::sort(want.begin(), want.end());
    for (int64_t n = 0; n < c.k; ++n) {
      const bool real = n < int64_t(want.size());
      wrong += items[b * c.k + n] != (real ? want[n].second : -1);
      wrong += double(scores[b * c.k + n]) != (real ? -want[n].first : -INFINITY);
    }
  }
  if (wrong > 0) std::printf("%s: %d wrong positions\n", c.name, wrong);
  return wrong;
}

}  // namespace

int main() {
  const Case cases[] = {
      {"small", 5, 7, 3, 3, 0, true, false},
      {"one item", 3, 1, 2, 1, 0, false, false},
      {"no item", 3, 0, 2, 4, 0, false, false},
      {"no user", 0, 9, 2, 4, 0, false, false},
      {"k beyond the items", 4, 130, 5, 200, 0, true, false},
      {"whole tiles", 16, 256, 32, 20, 0, false, false},
      {"odd tiles, chosen users", 37, 1001, 33, 17, 40, true, false},
      {"many cuts", 3, 2000, 1, 2, 0, true, false},
      {"long lists", 2, 1500, 3, 1024, 0, true, false},
      {"NaN and infinity", 6, 700, 1, 60, 0, true, true},
  };
  int wrong = 0;
  for (const Case& c : cases) {
    wrong += check<float, float>(c, 1);
    wrong += check<bf16, float>(c, 2);
    wrong += check<double, double>(c, 1);
  }
  // Few users on many multiprocessors: the items are divided.
  const Case divided[] = {
      {"parts", 3, 5000, 9, 20, 0, true, false},
      {"parts and ties", 2, 4111, 1, 7, 0, true, true},
      {"parts and long lists", 1, 2500, 2, 1024, 0, false, false},
  };
  for (const Case& c : divided) {
    wrong += check<float, float>(c, 64);
    wrong += check<double, double>(c, 3);
  }
  std::printf(wrong == 0 ? "emulated CUDA masked_topk: ok\n" : "emulated CUDA masked_topk: FAILED\n");
  return wrong != 0;
}
