// The CUDA kernels of add_normalized, run on the CPU against a plain loop in double.
//   cd csrc/ops/add_normalized && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/add_normalized/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::normal;

// Returns the number of wrong results. interleaved: the views of a row are neighbors in memory.
template <class T, class A>
int check(int64_t views, int64_t rows, int64_t d, bool interleaved, double tolerance) {
  std::mt19937 random(5);
  const mmssl::NormalizedSize size{views, rows, d, interleaved ? d : rows * d,
                                   interleaved ? views * d : d};
  auto x = normal<T>(views * rows * d, random);
  const auto base = normal<T>(rows * d, random), grad = normal<T>(rows * d, random);
  for (int64_t k = 0; rows > 1 && views > 0 && k < d; ++k) x[size.row_step + k] = T{};  // a row of zeros
  const A weight = A(0.4);
  std::vector<T> out(rows * d), grad_x(views * rows * d);
  std::vector<A> inverse(views * rows, A(NAN));
  mmssl::cuda::launch_add_normalized<T, A>(size, base.data(), x.data(), weight, out.data(),
                                           inverse.data(), nullptr);
  mmssl::cuda::launch_add_normalized_backward<T, A>(size, grad.data(), x.data(), inverse.data(),
                                                    weight, grad_x.data(), nullptr);
  int wrong = 0;
  const auto close = [&](double found, double exact) {
    wrong += !(std::fabs(found - exact) <= tolerance * (1 + std::fabs(exact)));
  };
  for (int64_t n = 0; n < rows; ++n) {
    std::vector<double> sum(d);
    for (int64_t k = 0; k < d; ++k) sum[k] = as_double(base[n * d + k]);
    for (int64_t m = 0; m < views; ++m) {
      const int64_t at = m * size.view_step + n * size.row_step;
      double square = 0, dot = 0;
      for (int64_t k = 0; k < d; ++k) {
        square += as_double(x[at + k]) * as_double(x[at + k]);
        dot += as_double(x[at + k]) * as_double(grad[n * d + k]);
      }
      const bool zero = !(std::sqrt(square) > 1e-12);
      const double norm = zero ? 1e-12 : std::sqrt(square);
      for (int64_t k = 0; k < d; ++k) {
        sum[k] += double(weight) * as_double(x[at + k]) / norm;
        const double along = zero ? 0 : dot / square * as_double(x[at + k]);
        const double exact = double(weight) / norm * (as_double(grad[n * d + k]) - along);
        close(as_double(grad_x[at + k]), exact);
      }
    }
    for (int64_t k = 0; k < d; ++k) close(as_double(out[n * d + k]), sum[k]);
  }
  if (wrong > 0) std::printf("M = %d, N = %d, D = %d: %d wrong\n", int(views), int(rows), int(d), wrong);
  return wrong;
}

// The rows with an offset, and their gradient by differences.
int check_offset(int64_t rows, int64_t d, bool with_offset) {
  std::mt19937 random(8);
  auto x = normal<double>(rows * d, random);
  const auto offset = normal<double>(rows, random), grad = normal<double>(rows * (d + 1), random);
  if (rows > 2) std::fill_n(x.begin() + d, d, 0.0);  // a row of zeros
  const double radius = 12;
  const auto of = [&] {
    return mmssl::cuda::OffsetArgs<double>{rows, d, x.data(), with_offset ? offset.data() : nullptr,
                                           radius};
  };
  std::vector<double> out(rows * (d + 1), NAN), grad_x(rows * d, NAN);
  mmssl::cuda::launch_offset_rows<double>(of(), out.data(), nullptr);
  mmssl::cuda::launch_offset_rows_backward<double>(of(), grad.data(), grad_x.data(), nullptr);
  int wrong = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const auto pairing = [&] {
      double square = 0, sum = 0;
      for (int64_t k = 0; k < d; ++k) square += x[n * d + k] * x[n * d + k];
      const double o = with_offset ? offset[n] : 0;
      const double length = with_offset ? std::sqrt(radius * radius - o * o) : radius;
      for (int64_t k = 0; k < d; ++k) {
        const double exact = length * x[n * d + k] / std::max(std::sqrt(square), 1e-12);
        sum += exact * grad[n * (d + 1) + k];
        if (std::fabs(out[n * (d + 1) + k] - exact) > 1e-10) wrong += 1000000;
      }
      return sum;
    };
    pairing();
    wrong += out[n * (d + 1) + d] != (with_offset ? offset[n] : 1);
    if (wrong != 0 || (rows > 2 && n == 1)) continue;
    for (int64_t k = 0; k < d; ++k) {
      const std::vector<double> kept = out;
      const double step = 1e-6, before = x[n * d + k];
      x[n * d + k] = before + step;
      mmssl::cuda::launch_offset_rows<double>(of(), out.data(), nullptr);
      const double above = pairing();
      x[n * d + k] = before - step;
      mmssl::cuda::launch_offset_rows<double>(of(), out.data(), nullptr);
      const double below = pairing();
      x[n * d + k] = before, out = kept;
      wrong += std::fabs(grad_x[n * d + k] - (above - below) / (2 * step)) > 1e-5;
    }
  }
  if (wrong > 0) std::printf("offset rows, N = %d, D = %d: %d wrong\n", int(rows), int(d), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t d : {1, 5, 40}) wrong += check_offset(4, d, true) + check_offset(1, d, false);
  for (int64_t views : {0, 1, 3}) {
    for (int64_t d : {1, 31, 64, 130}) {
      for (int64_t rows : {0, 1, 9}) {
        wrong += check<float, float>(views, rows, d, rows > 1, 2e-6);
        wrong += check<double, double>(views, rows, d, false, 1e-13);
        wrong += check<bf16, float>(views, rows, d, true, 1e-2);
      }
    }
  }
  std::printf(wrong == 0 ? "emulated CUDA add_normalized: ok\n"
                         : "emulated CUDA add_normalized: FAILED\n");
  return wrong != 0;
}
