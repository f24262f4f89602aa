// The CUDA kernels of bpr_loss, run on the CPU against a plain loop in double.
//   cd csrc/ops/bpr && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/bpr/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::assign;

std::vector<int64_t> stable_order(const std::vector<int64_t>& ids) {
  std::vector<int64_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  return order;
}

// Returns the number of wrong results. size makes margins large enough to overflow a plain exp.
template <class T, class A>
int check(int64_t users, int64_t items, int64_t batch, int64_t d, double size, double tolerance) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal(0, size);
  std::vector<T> user_emb(users * d), item_emb(items * d), grad_user(users * d, T{}),
      grad_item(items * d, T{});
  for (auto& v : user_emb) assign(normal(random), v);
  for (auto& v : item_emb) assign(normal(random), v);
  std::vector<int64_t> user(batch), pos(batch), neg(batch);
  for (int64_t b = 0; b < batch; ++b) {
    user[b] = random() % users, pos[b] = random() % items, neg[b] = random() % items;
  }
  std::vector<int64_t> both(pos);
  both.insert(both.end(), neg.begin(), neg.end());
  const mmssl::BprArgs<T> a{user_emb.data(), item_emb.data(), user.data(), pos.data(),
                            neg.data(),      users,           items,       batch,
                            d};
  A loss = A(NAN), squares = A(NAN);
  std::vector<A> slope(batch, A(NAN)), scratch(2 * batch, A(NAN));
  mmssl::cuda::launch_bpr(a, &loss, &squares, slope.data(), scratch.data(), nullptr);
  const A grad_loss = A(1.5), grad_squares = A(0.25);
  const auto user_order = stable_order(user), item_order = stable_order(both);
  mmssl::cuda::launch_bpr_backward(a, &grad_loss, &grad_squares, slope.data(), user_order.data(),
                                   item_order.data(), grad_user.data(), grad_item.data(), nullptr);

  double true_loss = 0, true_squares = 0;
  std::vector<double> true_user(users * d, 0.0), true_item(items * d, 0.0);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t rows[3] = {user[b] * d, pos[b] * d, neg[b] * d};
    double margin = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double u = as_double(user_emb[rows[0] + k]), p = as_double(item_emb[rows[1] + k]),
                   n = as_double(item_emb[rows[2] + k]);
      margin += u * (p - n), true_squares += u * u + p * p + n * n;
    }
    true_loss += std::max(-margin, 0.0) + std::log1p(std::exp(-std::fabs(margin)));
    const double weight = -grad_loss / double(batch) / (1 + std::exp(margin));
    for (int64_t k = 0; k < d; ++k) {
      const double u = as_double(user_emb[rows[0] + k]), p = as_double(item_emb[rows[1] + k]),
                   n = as_double(item_emb[rows[2] + k]);
      true_user[rows[0] + k] += weight * (p - n) + 2 * grad_squares * u;
      true_item[rows[1] + k] += weight * u + 2 * grad_squares * p;
      true_item[rows[2] + k] += -weight * u + 2 * grad_squares * n;
    }
  }
  true_loss /= double(batch);
  const auto close = [&](double found, double exact, double scale) {
    return std::fabs(found - exact) <= tolerance * (scale + std::fabs(exact));
  };
  int wrong = batch == 0 ? !std::isnan(loss) : !close(loss, true_loss, size * size);
  wrong += !close(squares, true_squares, 0);
  for (int64_t i = 0; i < users * d; ++i) wrong += !close(as_double(grad_user[i]), true_user[i], size);
  for (int64_t i = 0; i < items * d; ++i) wrong += !close(as_double(grad_item[i]), true_item[i], size);
  if (wrong > 0) {
    std::printf("%d users, %d items, B = %d, D = %d, size %g: %d wrong\n", int(users), int(items),
                int(batch), int(d), size, wrong);
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t d : {1, 31, 32, 64, 100}) {
    for (int64_t batch : {0, 1, 7, 8, 300}) {
      for (double size : {0.3, 30.0}) {
        wrong += check<float, float>(23, 40, batch, d, size, 2e-5);
        wrong += check<double, double>(23, 40, batch, d, size, 1e-12);
      }
      wrong += check<bf16, float>(23, 40, batch, d, 0.3, 1e-2);
      wrong += check<float, float>(1, 1, batch, d, 0.3, 2e-5);
    }
  }
  std::printf(wrong == 0 ? "emulated CUDA bpr: ok\n" : "emulated CUDA bpr: FAILED\n");
  return wrong != 0;
}
