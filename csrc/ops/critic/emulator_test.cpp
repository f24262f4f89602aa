// The CUDA kernels of a critic's pass, run on the CPU against plain loops in double.
//   cd csrc/ops/critic && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/critic/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::normal;

struct Check {
  double tolerance;
  int wrong = 0;
  void operator()(double found, double exact) {
    wrong += !(std::fabs(found - exact) <= tolerance * (1 + std::fabs(exact)));
  }
};

template <class A>
std::vector<A> shares(int64_t n, std::mt19937& random) {
  std::vector<A> out(n);
  for (A& v : out) v = A(double(random() % 1000 + 1) / 1002);
  return out;
}

// Rows of G groups of n, B of them real, and the gradient of them.
template <class T, class A>
int check_rows(int64_t groups, int64_t batch, int64_t copies, int64_t h, double tolerance) {
  std::mt19937 random(1);
  const int64_t n = batch * copies, real = groups > 1 ? batch : 0;
  const auto pre = normal<T>((n + real) * h, random), grad = normal<T>(groups * n * h, random);
  const auto bias = normal<A>(h, random), alpha = shares<A>(n, random);
  const A* share = groups == 3 ? alpha.data() : nullptr;
  std::vector<T> x(groups * n * h), to_pre((n + batch) * h);
  mmssl::cuda::launch_grouped_rows<T, A>(
      {groups, n, batch, h, pre.data(), bias.data(), share, x.data()}, nullptr);
  Check check{tolerance};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < h; ++c) {
      const double fake = as_double(pre[i * h + c]) + double(bias[c]);
      check(as_double(x[i * h + c]), fake);
      if (groups == 1) continue;
      const double other = as_double(pre[(n + i % batch) * h + c]) + double(bias[c]);
      check(as_double(x[(n + i) * h + c]), other);
      if (groups == 2) continue;
      check(as_double(x[(2 * n + i) * h + c]), fake + double(alpha[i]) * (other - fake));
    }
  }
  if (groups == 1) return check.wrong;
  mmssl::cuda::launch_ungrouped_rows<T, A>(
      {groups, n, batch, h, grad.data(), share, to_pre.data()}, nullptr);
  std::vector<double> exact((n + batch) * h);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < h; ++c) {
      const double mixed = groups == 3 ? as_double(grad[(2 * n + i) * h + c]) : 0;
      exact[i * h + c] = as_double(grad[i * h + c]) + (1 - double(alpha[i])) * mixed;
      exact[(n + i % batch) * h + c] += as_double(grad[(n + i) * h + c]) + double(alpha[i]) * mixed;
    }
  }
  for (size_t k = 0; k < exact.size(); ++k) check(as_double(to_pre[k]), exact[k]);
  return check.wrong;
}

// The last layer over G groups of n rows of h columns: scores, and both gradients.
template <class T, class A>
int check_last(int64_t groups, int64_t n, int64_t h, double tolerance) {
  std::mt19937 random(2);
  const int64_t count = groups * n, last = groups == 3 ? n : 0;
  auto y = normal<T>(count * h, random);
  const auto up = normal<T>(n * h, random);
  const auto weight = normal<A>(h, random), bias = normal<A>(1, random);
  if (count > 2) mmssl::narrow(A(200), y[0]), mmssl::narrow(A(-200), y[h]);  // saturate
  std::vector<A> share(count), slope(count), to_logit(count), to_weight(h), to_bias(1);
  std::vector<T> of_scores(last * h), to_y(count * h);
  const T* third = last > 0 ? up.data() : nullptr;
  const A grad = A(0.5);
  mmssl::cuda::launch_scores<T, A>({count, h, last, y.data(), weight.data(), bias.data(),
                                    share.data(), slope.data(), of_scores.data()},
                                   nullptr);
  mmssl::cuda::launch_logit_gradient<T, A>({groups, n, h, &grad, share.data(), slope.data(), third,
                                            weight.data(), to_logit.data(), to_y.data()},
                                           nullptr);
  mmssl::cuda::launch_last_gradient<T, A>({groups, n, h, to_logit.data(), slope.data(), y.data(),
                                           third, to_weight.data(), to_bias.data()},
                                          nullptr);
  Check check{tolerance};
  std::vector<double> weight_exact(h);
  double bias_exact = 0, size = 1;
  for (int64_t row = 0; row < count; ++row) {
    double logit = double(bias[0]), through = 0;
    for (int64_t c = 0; c < h; ++c) logit += as_double(y[row * h + c]) * double(weight[c]);
    const double s = 1 / (1 + std::exp(-logit));
    check(share[row], s), check(slope[row] / 100, s * (1 - s));
    const double own = double(slope[row]);
    double exact = (row < n ? 0.5 : -0.5) / double(n) * own;
    if (row >= 2 * n) {
      for (int64_t c = 0; c < h; ++c) {
        through += as_double(up[(row - 2 * n) * h + c]) * double(weight[c]);
        check(as_double(of_scores[(row - 2 * n) * h + c]), own * double(weight[c]));
        weight_exact[c] += own * as_double(up[(row - 2 * n) * h + c]);
      }
      exact = through * (1 - 2 * double(share[row])) * own;
    }
    check(to_logit[row], exact);
    const double found = double(to_logit[row]);
    bias_exact += found, size += std::fabs(found);
    for (int64_t c = 0; c < h; ++c) {
      check(as_double(to_y[row * h + c]), found * double(weight[c]));
      weight_exact[c] += found * as_double(y[row * h + c]);
      size += std::fabs(found * as_double(y[row * h + c]));
    }
  }
  for (int64_t c = 0; c < h; ++c) check(to_weight[c] / size, weight_exact[c] / size);
  check(to_bias[0] / size, bias_exact / size);
  return check.wrong;
}

template <class T, class A>
int check_norms(int64_t n, int64_t columns, double tolerance) {
  std::mt19937 random(3);
  auto image = normal<T>(n * columns, random);
  for (int64_t c = 0; c < columns; ++c) mmssl::narrow(A(0), image[c]);  // a row without a length
  const std::vector<T> other = image;
  std::vector<A> norm(n), factor(n);
  mmssl::cuda::launch_row_norms<T, A>(
      {n, columns, image.data(), other.data(), norm.data(), factor.data()}, nullptr);
  const auto first = normal<T>(n * columns, random), second = normal<T>(n * columns, random);
  const A grad = A(1.5), weight = A(2);
  std::vector<T> one(n * columns), two(n * columns);
  mmssl::cuda::launch_scaled_rows<T, A>({n, columns, &grad, factor.data(), weight, first.data(),
                                         second.data(), one.data(), two.data()},
                                        nullptr);
  Check check{tolerance};
  for (int64_t i = 0; i < n; ++i) {
    double square = 0;
    for (int64_t c = 0; c < columns; ++c) square += std::pow(as_double(image[i * columns + c]), 2);
    check(norm[i], std::sqrt(square));
    check(factor[i], square == 0 ? 0 : 0.6 / double(n) * (1 - 1 / std::sqrt(square)));
    for (int64_t k = i * columns; k < (i + 1) * columns; ++k) {
      check(as_double(one[k]), 3 * double(factor[i]) * as_double(first[k]));
      check(as_double(two[k]), 3 * double(factor[i]) * as_double(second[k]));
    }
  }
  return check.wrong;
}

template <class A>
int check_loss(int64_t groups, int64_t n, double tolerance) {
  std::mt19937 random(4);
  const auto share = shares<A>(groups * n, random), norm = shares<A>(n, random);
  const bool third = groups == 3;
  const A weight = A(1.7);
  std::vector<A> terms(4);
  mmssl::cuda::launch_loss_terms<A>(
      {groups, n, share.data(), third ? norm.data() : nullptr, weight, terms.data()}, nullptr);
  double exact[3] = {};
  Check check{tolerance};
  for (int64_t i = 0; i < n; ++i) {
    exact[0] += 100 * double(share[i]) / double(n);
    if (groups > 1) exact[1] += 100 * double(share[n + i]) / double(n);
    if (third) exact[2] += 0.3 * double(weight) * std::pow(double(norm[i]) - 1, 2) / double(n);
  }
  check(terms[0], exact[0] - exact[1] + exact[2]);
  for (int k = 0; k < 3; ++k) check(terms[1 + k], exact[k]);
  return check.wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t groups : {1, 2, 3}) {
    for (int64_t batch : {1, 5, 33}) {
      wrong += check_rows<float, float>(groups, batch, 2, 9, 1e-6);
      wrong += check_rows<double, double>(groups, batch, 3, 32, 1e-14);
    }
    wrong += check_rows<bf16, float>(groups, 4, 2, 17, 1e-2);
    for (int64_t h : {1, 7, 40}) {
      wrong += check_last<float, float>(groups, 37, h, 1e-5);
      wrong += check_last<double, double>(groups, 1, h, 1e-13);
      wrong += check_last<bf16, float>(groups, 9, h, 1e-2);
    }
    for (int64_t n : {1, 31, 700}) {
      wrong += check_loss<float>(groups, n, 1e-6) + check_loss<double>(groups, n, 1e-13);
    }
  }
  for (int64_t n : {1, 300}) {
    wrong += check_norms<float, float>(n, 70, 1e-5) + check_norms<double, double>(n, 5, 1e-13);
    wrong += check_norms<bf16, float>(n, 33, 1e-2);
  }
  std::printf(wrong == 0 ? "emulated CUDA critic: ok\n" : "emulated CUDA critic: FAILED %d\n", wrong);
  return wrong != 0;
}
