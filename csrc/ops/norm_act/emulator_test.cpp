// The CUDA kernels of norm_act, run on the CPU against the CPU kernels in double and against the
// definition of the forward.
//   cd csrc/ops/norm_act && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/norm_act/kernels.cuh"

namespace {

using mmssl::NormActArgs;
using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::normal;

constexpr double kEps = 1e-3, kSlope = 0.2, kScale = 1.4;

// The three passes in plain loops. The gradients follow from dual numbers: the forward is evaluated
// at x + t up in one direction at a time.
struct Truth {
  int64_t n, h;
  std::vector<double> x, weight, bias, keep;  // keep: with its factor

  double act(int64_t at) const { return x[at] > 0 ? x[at] : kSlope * x[at]; }
  double slope(int64_t at) const { return x[at] > 0 ? 1 : kSlope; }

  // Of a column, given its grad_y: grad_x, grad_weight and grad_bias, as functions of (grad_y, x).
  struct Column {
    std::vector<double> grad_x;
    double weight = 0, bias = 0;
  };
  void statistics(int64_t c, double& mean, double& rstd) const {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) sum += act(i * h + c);
    mean = sum / double(n);
    for (int64_t i = 0; i < n; ++i) squares += (act(i * h + c) - mean) * (act(i * h + c) - mean);
    rstd = 1 / std::sqrt(squares / double(n) + kEps);
  }
  Column backward(int64_t c, const std::vector<double>& grad_y) const {
    double mean, rstd;
    statistics(c, mean, rstd);
    Column out;
    for (int64_t i = 0; i < n; ++i) {
      const double g = grad_y[i * h + c] * keep[i * h + c];
      out.bias += g, out.weight += g * (act(i * h + c) - mean) * rstd;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i * h + c;
      const double g = grad_y[at] * keep[at], xhat = (act(at) - mean) * rstd;
      out.grad_x.push_back(slope(at) * weight[c] * rstd *
                           (g - out.bias / double(n) - xhat * out.weight / double(n)));
    }
    return out;
  }
  // <(up_x, up_weight, up_bias), backward> of a column, of which the second gradient is the gradient.
  double pairing(int64_t c, const std::vector<double>& grad_y, const std::vector<double>& up_x,
                 double up_weight, double up_bias) const {
    const Column column = backward(c, grad_y);
    double sum = up_weight * column.weight + up_bias * column.bias;
    for (int64_t i = 0; i < n; ++i) sum += up_x[i * h + c] * column.grad_x[i];
    return sum;
  }
};

template <class T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> out;
  for (const T& v : values) out.push_back(as_double(v));
  return out;
}

// Returns the number of wrong results.
template <class T, class A>
int check(int64_t n, int64_t h, bool dropout, double tolerance) {
  std::mt19937 random(11);
  const auto x = normal<T>(n * h, random), grad = normal<T>(n * h, random);
  const auto up = normal<T>(n * h, random);
  const auto weight = normal<A>(h, random), bias = normal<A>(h, random);
  const auto up_weight = normal<A>(h, random), up_bias = normal<A>(h, random);
  std::vector<uint8_t> keep(n * h);
  for (auto& k : keep) k = random() % 10 < 7;
  const NormActArgs<A> a{n, h, weight.data(), dropout ? keep.data() : nullptr, A(kScale), A(kSlope)};
  std::vector<double> scratch(mmssl::cuda::norm_act_scratch(n, h, 1), NAN);
  std::vector<T> y(n * h), grad_x(n * h), out_grad_y(n * h), out_x(n * h);
  std::vector<A> mean(h), rstd(h), grad_weight(h), grad_bias(h), out_weight(h);
  mmssl::cuda::launch_norm_act<T, A>(a, x.data(), bias.data(), A(kEps), y.data(), mean.data(),
                                     rstd.data(), scratch.data(), nullptr);
  mmssl::cuda::launch_norm_act_backward<T, A>(a, grad.data(), x.data(), mean.data(), rstd.data(),
                                              grad_x.data(), grad_weight.data(), grad_bias.data(),
                                              scratch.data(), nullptr);
  mmssl::cuda::launch_norm_act_double_backward<T, A>(
      a, up.data(), up_weight.data(), up_bias.data(), grad.data(), x.data(), mean.data(),
      rstd.data(), out_grad_y.data(), out_x.data(), out_weight.data(), scratch.data(), nullptr);

  Truth truth{n, h, widened(x), widened(weight), widened(bias), {}};
  for (const uint8_t k : keep) truth.keep.push_back(dropout ? k * kScale : 1);
  std::vector<double> wide_grad = widened(grad);
  const std::vector<double> wide_up = widened(up);
  int wrong = 0;
  const auto close = [&](double found, double exact, double scale) {
    wrong += !(std::fabs(found - exact) <= tolerance * (scale + std::fabs(exact)));
  };
  for (int64_t c = 0; c < h; ++c) {
    double true_mean, true_rstd;
    truth.statistics(c, true_mean, true_rstd);
    close(mean[c], true_mean, 1), close(rstd[c], true_rstd, 1);
    const Truth::Column column = truth.backward(c, wide_grad);
    close(grad_weight[c], column.weight, std::sqrt(n)), close(grad_bias[c], column.bias, std::sqrt(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i * h + c;
      const double xhat = (truth.act(at) - true_mean) * true_rstd;
      close(as_double(y[at]), truth.keep[at] * (truth.weight[c] * xhat + truth.bias[c]), 1);
      close(as_double(grad_x[at]), column.grad_x[i], 1);
    }
    // The second gradient is the derivative of a pairing: exact differences where it is linear, in
    // grad_y and in the weight, and central ones in x, at a few rows.
    const double w = double(up_weight[c]), b = double(up_bias[c]), step = 1e-5;
    const auto pairing = [&] { return truth.pairing(c, wide_grad, wide_up, w, b); };
    const double at_zero = pairing();
    truth.weight[c] += 1;
    close(out_weight[c], pairing() - at_zero, n);
    truth.weight[c] -= 1;
    for (int64_t i = 0; i < n; i += 1 + n / 5) {
      const int64_t at = i * h + c;
      wide_grad[at] += 1;
      close(as_double(out_grad_y[at]), pairing() - at_zero, 1);
      wide_grad[at] -= 1;
      if (std::fabs(truth.x[at]) < 1e-3) continue;  // the slope jumps at 0
      truth.x[at] += step;
      const double above = pairing();
      truth.x[at] -= 2 * step;
      const double below = pairing();
      truth.x[at] += step;
      wrong += !(std::fabs(as_double(out_x[at]) - (above - below) / (2 * step)) <=
                 std::max(tolerance, 1e-6) * (4 + std::fabs(above - below) / step));
    }
  }
  if (wrong > 0) std::printf("N = %d, H = %d: %d wrong\n", int(n), int(h), wrong);
  return wrong;
}

// Groups have the bits that each has alone, and vectors are the sums of theirs; without gradients for
// the vectors they are those of zeros.
int check_groups(int64_t groups, int64_t n, int64_t h) {
  using T = double;
  std::mt19937 random(5);
  const int64_t all = groups * n * h;
  const auto x = normal<T>(all, random), grad = normal<T>(all, random), up = normal<T>(all, random);
  const auto weight = normal<T>(h, random), bias = normal<T>(h, random);
  const std::vector<T> zeros(h);
  std::vector<uint8_t> keep(all);
  for (auto& k : keep) k = random() % 10 < 7;
  struct Results {
    std::vector<T> y, grad_x, out_grad_y, out_x, mean, rstd, grad_weight, grad_bias, out_weight;
  };
  const auto run = [&](int64_t from, int64_t count, const T* up_vector) {
    const int64_t first = from * n * h, size = count * n * h;
    Results r{std::vector<T>(size),      std::vector<T>(size),      std::vector<T>(size),
              std::vector<T>(size),      std::vector<T>(count * h), std::vector<T>(count * h),
              std::vector<T>(h),         std::vector<T>(h),         std::vector<T>(h)};
    const NormActArgs<T> a{n, h, weight.data(), keep.data() + first, kScale, kSlope, count};
    std::vector<double> scratch(mmssl::cuda::norm_act_scratch(n, h, count), NAN);
    mmssl::cuda::launch_norm_act<T, T>(a, x.data() + first, bias.data(), kEps, r.y.data(),
                                       r.mean.data(), r.rstd.data(), scratch.data(), nullptr);
    mmssl::cuda::launch_norm_act_backward<T, T>(
        a, grad.data() + first, x.data() + first, r.mean.data(), r.rstd.data(), r.grad_x.data(),
        r.grad_weight.data(), r.grad_bias.data(), scratch.data(), nullptr);
    mmssl::cuda::launch_norm_act_double_backward<T, T>(
        a, up.data() + first, up_vector, up_vector, grad.data() + first, x.data() + first,
        r.mean.data(), r.rstd.data(), r.out_grad_y.data(), r.out_x.data(), r.out_weight.data(),
        scratch.data(), nullptr);
    return r;
  };
  const Results whole = run(0, groups, nullptr);
  int wrong = 0;
  Results sums{{}, {}, {}, {}, {}, {}, zeros, zeros, zeros};
  for (int64_t g = 0; g < groups; ++g) {
    const Results one = run(g, 1, zeros.data());
    const auto same = [&](const std::vector<T>& part, const std::vector<T>& in) {
      for (size_t i = 0; i < part.size(); ++i) wrong += !(part[i] == in[g * part.size() + i]);
    };
    same(one.y, whole.y), same(one.grad_x, whole.grad_x), same(one.out_x, whole.out_x);
    same(one.out_grad_y, whole.out_grad_y), same(one.mean, whole.mean), same(one.rstd, whole.rstd);
    for (int64_t c = 0; c < h; ++c) {
      sums.grad_weight[c] += one.grad_weight[c], sums.grad_bias[c] += one.grad_bias[c];
      sums.out_weight[c] += one.out_weight[c];
    }
  }
  for (int64_t c = 0; c < h; ++c) {
    const double tolerance = 1e-12 * double(groups * n);
    wrong += !(std::fabs(sums.grad_weight[c] - whole.grad_weight[c]) <= tolerance);
    wrong += !(std::fabs(sums.grad_bias[c] - whole.grad_bias[c]) <= tolerance);
    wrong += !(std::fabs(sums.out_weight[c] - whole.out_weight[c]) <= tolerance * 10);
  }
  if (wrong > 0) std::printf("%d groups of %d rows: %d wrong\n", int(groups), int(n), wrong);
  return wrong;
}

// The forward with running statistics: its own results stay the same, and every group moves them.
template <class T, class A>
int check_running(int64_t n, int64_t h, int64_t groups, double momentum, double tolerance) {
  std::mt19937 random(3);
  const auto x = normal<T>(groups * n * h, random);
  const auto weight = normal<A>(h, random), bias = normal<A>(h, random);
  const auto before = normal<A>(h, random);
  const NormActArgs<A> a{n, h, weight.data(), nullptr, A(1), A(kSlope), groups};
  std::vector<double> scratch(mmssl::cuda::norm_act_scratch(n, h, groups), NAN);
  std::vector<T> y(groups * n * h), plain = y;
  std::vector<A> mean(groups * h), rstd = mean, running_mean = before, running_var = before;
  int64_t count = 5;
  const auto run = [&](std::vector<T>& to, const mmssl::cuda::Running<A>& running) {
    mmssl::cuda::launch_norm_act<T, A>(a, x.data(), bias.data(), A(kEps), to.data(), mean.data(),
                                       rstd.data(), scratch.data(), nullptr, running);
  };
  run(plain, {});
  run(y, {running_mean.data(), running_var.data(), &count, momentum});
  int wrong = count != 5 + groups;
  for (size_t i = 0; i < y.size(); ++i) wrong += as_double(y[i]) != as_double(plain[i]);
  for (int64_t c = 0; c < h; ++c) {
    double m = double(before[c]), v = m, largest = 1;
    for (int64_t g = 0; g < groups; ++g) {
      Truth truth{n, h, widened(std::vector<T>(x.begin() + g * n * h, x.begin() + (g + 1) * n * h)),
                  {}, {}, {}};
      double of_mean, r;
      truth.statistics(c, of_mean, r);
      const double unbiased = (1 / (r * r) - kEps) * double(n) / double(n - 1);
      m += momentum * (of_mean - m), v += momentum * (unbiased - v);
      largest = std::max(largest, unbiased);
    }
    wrong += !(std::fabs(running_mean[c] - m) <= tolerance);
    wrong += !(std::fabs(running_var[c] - v) <= tolerance * (1 + largest));
  }
  if (wrong > 0) std::printf("running statistics, N = %d: %d wrong\n", int(n), wrong);
  return wrong;
}

// The backward with more added, against the backward.
template <class T, class A>
int check_added(int64_t n, int64_t h, int64_t groups, bool with_more, double tolerance) {
  std::mt19937 random(4);
  const int64_t all = groups * n * h;
  const auto x = normal<T>(all, random), grad = normal<T>(all, random);
  const auto more = normal<T>(n * h, random);
  const auto weight = normal<A>(h, random), more_weight = normal<A>(h, random);
  const auto mean = normal<A>(groups * h, random), rstd = normal<A>(groups * h, random);
  const NormActArgs<A> a{n, h, weight.data(), nullptr, A(1), A(kSlope), groups};
  std::vector<double> scratch(mmssl::cuda::norm_act_scratch(n, h, groups), NAN);
  std::vector<T> grad_x(all), added(all);
  std::vector<A> vectors[5];
  for (auto& v : vectors) v.resize(h);
  mmssl::cuda::launch_norm_act_backward<T, A>(a, grad.data(), x.data(), mean.data(), rstd.data(),
                                              grad_x.data(), vectors[0].data(), vectors[1].data(),
                                              scratch.data(), nullptr);
  mmssl::cuda::launch_norm_act_added<T, A>(
      a, grad.data(), x.data(), mean.data(), rstd.data(), with_more ? more.data() : nullptr,
      with_more ? more_weight.data() : nullptr, added.data(), vectors[2].data(), vectors[3].data(),
      vectors[4].data(), scratch.data(), nullptr);
  int wrong = 0;
  for (int64_t c = 0; c < h; ++c) {
    double sum = 0, size = 0;
    for (int64_t row = 0; row < groups * n; ++row) {
      double exact = as_double(grad_x[row * h + c]);
      if (with_more && row >= (groups - 1) * n) exact += as_double(more[row * h + c - (all - n * h)]);
      const double found = as_double(added[row * h + c]);
      wrong += !(std::fabs(found - exact) <= tolerance * (1 + std::fabs(exact)));
      sum += exact, size += std::fabs(exact);
    }
    const double extra = with_more ? double(more_weight[c]) : 0;
    wrong += vectors[2][c] != A(vectors[0][c] + A(extra)) || vectors[3][c] != vectors[1][c];
    wrong += !(std::fabs(vectors[4][c] - sum) <= tolerance * (1 + size));
  }
  if (wrong > 0) std::printf("with more, N = %d: %d wrong\n", int(n), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (double momentum : {0.1, 0.5, 1.0}) {
    wrong += check_running<float, float>(300, 9, 1, momentum, 1e-5);
    wrong += check_running<double, double>(7, 3, 3, momentum, 1e-12);
  }
  wrong += check_running<bf16, float>(6000, 2, 3, 0.1, 1e-5);
  for (bool with_more : {false, true}) {
    wrong += check_added<float, float>(65, 17, 3, with_more, 1e-5);
    wrong += check_added<double, double>(9, 8, 1, with_more, 1e-12);
    wrong += check_added<double, double>(6000, 3, 3, with_more, 1e-12);
    wrong += check_added<bf16, float>(40, 9, 2, with_more, 2e-2);
  }
  for (int64_t n : {2, 7, 128, 300}) {
    for (int64_t h : {1, 31, 32, 65}) {
      wrong += check<float, float>(n, h, true, 2e-5);
      wrong += check<double, double>(n, h, n > 100, 1e-11);
    }
  }
  wrong += check<bf16, float>(130, 33, true, 2e-2);
  wrong += check_groups(3, 130, 33) + check_groups(2, 5, 3);
  wrong += check<float, float>(17000, 3, true, 2e-5);  // two launches
  wrong += check_groups(2, 16400, 2);  // likewise
  wrong += check<float, float>(5, 0, true, 2e-5);
  std::printf(wrong == 0 ? "emulated CUDA norm_act: ok\n" : "emulated CUDA norm_act: FAILED\n");
  return wrong != 0;
}
