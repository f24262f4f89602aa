// The CUDA kernels of info_nce, run on the CPU against plain loops in double, gradients included.
//   cd csrc/ops/info_nce && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp *.cu
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/info_nce/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::assign;
using mmssl::cuda::InfoNceShape;
using mmssl::cuda::Precision;
using Rows = std::vector<double>;

struct Expected {
  Rows loss, grad[3];
  double grad_temperature = 0;
};

// One direction of one pair: adds to the loss and, through the scores, to the gradients dz.
struct Plain {
  const InfoNceShape& s;
  double t;
  const int64_t* target;  // null: row i
  const int64_t* count;   // of each pair; null: all
  Rows z[3], dz[3];
  double dt = 0;

  double dot(int a, int64_t i, int b, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < s.d; ++k) sum += z[a][i * s.d + k] * z[b][j * s.d + k];
    return sum;
  }
  double direction(int a, int b, int64_t pair, int64_t i, double weight) {
    const int64_t firsts[] = {pair * s.n, pair * s.m}, first = firsts[a];
    const int64_t y = target == nullptr ? i : target[first + i];
    const int64_t n = count == nullptr ? s.n : count[pair], m = count == nullptr ? s.m : n;
    if (i >= n) return 0;
    struct Term {
      int set;
      int64_t row;
      double score;
    };
    std::vector<Term> terms;
    if (y >= 0) terms.push_back({b, firsts[b] + y, 0});  // the positive, if there is one
    for (int64_t j = 0; s.in_batch && j < m; ++j) {
      if (j != y) terms.push_back({b, firsts[b] + j, 0});
    }
    for (int64_t j = 0; s.intra_view && j < n; ++j) {
      if (j != i) terms.push_back({a, first + j, 0});
    }
    for (int64_t j = 0; j < s.k; ++j) terms.push_back({2, j, 0});
    double most = -1e300, sum = 0;
    for (Term& term : terms) {
      term.score = dot(a, first + i, term.set, term.row);
      most = std::max(most, term.score / t);
    }
    for (const Term& term : terms) sum += std::exp(term.score / t - most);
    const double lse = most + std::log(sum);
    const double p = std::exp((y < 0 ? 0 : terms[0].score / t) - lse);
    const double w = weight * p / (p + s.eps);
    for (size_t n = 0; n < terms.size(); ++n) {
      const Term& term = terms[n];
      const double g = w / t * (std::exp(term.score / t - lse) - (n == 0 && y >= 0 ? 1 : 0));
      dt -= g * term.score / t;
      for (int64_t k = 0; k < s.d; ++k) {
        dz[a][(first + i) * s.d + k] += g * z[term.set][term.row * s.d + k];
        dz[term.set][term.row * s.d + k] += g * z[a][(first + i) * s.d + k];
      }
    }
    return -std::log(p + s.eps);
  }
};

Expected plain(const InfoNceShape& s, const Rows (&x)[3], double t, const int64_t* target,
               const int64_t* count, const Rows& grad) {
  Plain p{s, t, target, count, {x[0], x[1], x[2]}, {}};
  std::vector<double> norms[3];
  for (int set = 0; set < 3; ++set) {
    p.dz[set].assign(x[set].size(), 0);
    for (size_t row = 0; row < x[set].size() / s.d; ++row) {
      double sum = 0;
      for (int64_t k = 0; k < s.d; ++k) sum += x[set][row * s.d + k] * x[set][row * s.d + k];
      norms[set].push_back(std::max(std::sqrt(sum), 1e-12));
      for (int64_t k = 0; k < s.d; ++k) p.z[set][row * s.d + k] /= norms[set].back();
    }
  }
  Expected e;
  const int directions = s.symmetric ? 2 : 1;
  for (int64_t row = 0; row < s.pairs * s.n; ++row) {
    double loss = 0;
    for (int way = 0; way < directions; ++way) {
      loss += p.direction(way, 1 - way, row / s.n, row % s.n, grad[row] / directions);
    }
    e.loss.push_back(loss / directions);
  }
  e.grad_temperature = p.dt;
  for (int set = 0; set < 3; ++set) {
    e.grad[set] = p.dz[set];
    for (size_t row = 0; row < norms[set].size(); ++row) {
      double along = 0;
      for (int64_t k = 0; k < s.d; ++k) along += p.z[set][row * s.d + k] * p.dz[set][row * s.d + k];
      if (norms[set][row] <= 1e-12) along = 0;
      for (int64_t k = 0; k < s.d; ++k) {
        double& g = e.grad[set][row * s.d + k];
        g = (g - along * p.z[set][row * s.d + k]) / norms[set][row];
      }
    }
  }
  return e;
}

template <class V>
double worst(const V& got, const Rows& expected, double floor) {
  double error = 0, scale = floor;
  for (size_t n = 0; n < expected.size(); ++n) {
    const double difference = std::abs(as_double(got[n]) - expected[n]);
    error = std::max(error, difference == difference ? difference : HUGE_VAL);
    scale = std::max(scale, std::abs(expected[n]));
  }
  return error / scale;
}

enum class Rest { kNothing, kTargets, kPadding };  // what else a problem has

template <class T, class A>
int check(const char* name, InfoNceShape s, double t, double tolerance, Rest rest = Rest::kNothing) {
  const bool targeted = rest == Rest::kTargets, padded = rest == Rest::kPadding;
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  const int64_t rows = s.pairs * s.n, counts[3] = {rows, s.pairs * s.m, s.k};
  std::vector<int64_t> targets;
  // Many anchors share a positive; one has none.
  for (int64_t row = 0; targeted && row < rows; ++row) {
    targets.push_back(row == 2 ? -1 : row % 3 == 0 ? s.m / 2 : int64_t(random() % s.m));
  }
  const int64_t* target = targeted ? targets.data() : nullptr;
  // The first pair has some rows, the next one has none.
  const std::vector<int64_t> live{s.n * 2 / 3, 0};
  const int64_t* count = padded ? live.data() : nullptr;
  std::vector<T> x[3], out[3];
  Rows wide[3], grad_wide;
  for (int set = 0; set < 3; ++set) {
    x[set].resize(counts[set] * s.d), out[set].resize(counts[set] * s.d);
    for (T& v : x[set]) assign(normal(random), v);
    for (int64_t k = 0; set == 1 && s.m > 5 && k < s.d; ++k) assign(0, x[1][3 * s.d + k]);
    for (const T& v : x[set]) wide[set].push_back(as_double(v));
    for (size_t n = 0; padded && n < x[set].size(); ++n) {
      if (int64_t(n) / s.d % s.n < live[n / s.d / s.n]) continue;
      assign(NAN, x[set][n]);
      wide[set][n] = 0;
    }
  }
  std::vector<A> grad, loss(rows), temperature{A(t)}, grad_temperature(1);
  for (int64_t row = 0; row < rows; ++row) grad.push_back(A(0.5 + double(row % 7) / 7));
  for (A g : grad) grad_wide.push_back(double(g));
  std::vector<double> saved(3 * rows);
  for (const bool backward : {false, true}) {
    std::vector<char> scratch(mmssl::cuda::info_nce_scratch<T, A>(s, targeted, backward) + 256, char(0xff));
    char* at = scratch.data() + (256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256) % 256;
    if (backward) {
      mmssl::cuda::launch_info_nce_backward<T, A>(
          s, x[0].data(), x[1].data(), x[2].data(), target, count, temperature.data(), saved.data(),
          grad.data(), out[0].data(), out[1].data(), out[2].data(), grad_temperature.data(), at,
          nullptr);
    } else {
      mmssl::cuda::launch_info_nce<T, A>(s, x[0].data(), x[1].data(), x[2].data(),
                                         target, count, temperature.data(), loss.data(), saved.data(), at,
                                         nullptr);
    }
  }
  const Expected e = plain(s, wide, double(temperature[0]), target, count, grad_wide);
  double errors[5] = {worst(loss, e.loss, 1)};
  for (int set = 0; set < 3; ++set) {
    // The zero row's gradient is 1e12 times the others; it is left out of the scale.
    Rows expected = e.grad[set];
    for (int64_t k = 0; set == 1 && s.m > 5 && k < s.d; ++k) {
      const double got = as_double(out[1][3 * s.d + k]) * 1e-12;
      assign(got, out[1][3 * s.d + k]);
      expected[3 * s.d + k] *= 1e-12;
    }
    errors[1 + set] = worst(out[set], expected, 0.1 / t);
  }
  errors[4] = worst(grad_temperature, {e.grad_temperature}, double(std::max<int64_t>(rows, 1)) / (t * t));
  bool wrong = false;
  for (double error : errors) wrong |= !(error <= tolerance);
  if (wrong) {
    std::printf("%s B %d N %d M %d K %d D %d t %g in batch %d intra %d symmetric %d target %d padding %d: "
                "%.1e %.1e %.1e %.1e %.1e\n",
                name, int(s.pairs), int(s.n), int(s.m), int(s.k), int(s.d), t, s.in_batch,
                s.intra_view, s.symmetric, targeted, padded, errors[0], errors[1], errors[2], errors[3],
                errors[4]);
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0, cases = 0;
  struct Size {
    int64_t pairs, n, k, d;
    int processors;
  };
  for (const Size& size : {Size{1, 0, 3, 4, 4}, Size{1, 1, 0, 1, 1}, Size{2, 7, 3, 5, 4}, Size{1, 70, 40, 65, 2},
                           Size{1, 130, 0, 16, 132}, Size{2, 20, 33, 130, 8}, Size{1, 200, 0, 64, 1}}) {
    for (const bool flag : {false, true}) {
      for (const double t : {0.2, 0.01}) {
        if (size.pairs * size.n > 50 && (t < 0.1 || (size.n == 200 && !flag))) continue;  // slow
        // Slower still with ThreadSanitizer: one small problem, and one with tiles to wait for.
        if (emu::races::kDetected && (!flag || (size.n != 7 && size.n != 200))) continue;
        const InfoNceShape s{size.pairs, size.n, size.n, size.k, size.d, true, size.n == 70 || !flag,
                             flag, flag ? 1e-3 : 0.0, Precision::kFull, size.processors, false};
        InfoNceShape fast = s, hopper = s;
        fast.precision = Precision::kTf32;
        hopper.hopper = true;
        const double hotter = t < 0.1 ? 20 : 1;  // errors of scores grow with 1 / t
        wrong += check<float, float>("float", s, t, 2e-6 * hotter);
        wrong += check<float, float>("tf32", fast, t, 1e-4 * hotter);
        wrong += check<bf16, float>("bf16", s, t, 1e-2);
        wrong += check<bf16, float>("bf16, wgmma", hopper, t, 1e-2);
        wrong += check<double, double>("double", s, t, 1e-13 * hotter);
        cases += 5;
        if (size.pairs * size.n > 140) continue;
        setenv("MMSSL_INFO_NCE", "tiles", 1);  // the kernels that do not pipeline
        wrong += check<float, float>("float, tiles", s, t, 2e-6 * hotter);
        wrong += check<float, float>("tf32, tiles", fast, t, 4e-3 * hotter);
        wrong += check<bf16, float>("bf16, tiles", s, t, 1e-2);
        unsetenv("MMSSL_INFO_NCE");
        cases += 3;
      }
    }
  }
  // Enough tiles for every place of a ring in shared memory to be used again.
  for (const int64_t d : {64, 100, 130}) {
    // Two blocks of rows: the emulator's bulk copies are late in one and early in the other.
    InfoNceShape s{1, 140, 1100, 0, d, true, false, false, 0.0, Precision::kFull, 1, false};
    for (const double t : {0.3, 0.01}) {
      if (emu::races::kDetected && (d == 100 || t < 0.1)) continue;
      wrong += check<bf16, float>("bf16", s, t, 1e-2, Rest::kTargets);
      s.hopper = true;
      wrong += check<bf16, float>("bf16, wgmma", s, t, 1e-2, Rest::kTargets);
      s.hopper = false;
      cases += 2;
    }
  }
  // Positives by index, and without negatives in the batch.
  for (const Size& size : {Size{1, 70, 140, 18, 2}, Size{2, 33, 5, 130, 4}, Size{2, 7, 9, 5, 4}}) {
    for (const bool in_batch : {true, false}) {
      if (emu::races::kDetected && size.n == 70) continue;
      const bool targeted = in_batch || size.n == 7, pairs = !targeted;
      const Rest rest = targeted ? Rest::kTargets : Rest::kNothing;
      InfoNceShape s{size.pairs, size.n, pairs ? size.n : size.k, size.n == 7 ? 3 : 0, size.d,
                     in_batch, size.n == 7, pairs, 1e-3, Precision::kFull, size.processors, false};
      InfoNceShape hopper = s;
      hopper.hopper = true;
      for (const bool tiles : {false, true}) {
        if (tiles) setenv("MMSSL_INFO_NCE", "tiles", 1);
        for (const double t : {0.3, 0.01}) {
          const double hotter = t < 0.1 ? 20 : 1;
          wrong += check<float, float>("float", s, t, 2e-6 * hotter, rest);
          wrong += check<bf16, float>("bf16", s, t, 1e-2, rest);
          if (!tiles) wrong += check<bf16, float>("bf16, wgmma", hopper, t, 1e-2, rest);
          s.precision = Precision::kTf32;
          wrong += check<float, float>("tf32", s, t, (tiles ? 4e-3 : 1e-4) * hotter, rest);
          s.precision = Precision::kFull;
          cases += tiles ? 3 : 4;
        }
        unsetenv("MMSSL_INFO_NCE");
      }
      wrong += check<double, double>("double", s, 0.3, 1e-13, rest);
      ++cases;
    }
  }
  // Rows that are padding, and not a number: the rest of a tile, whole blocks, whole pairs.
  for (const Size& size : {Size{2, 7, 0, 5, 4}, Size{1, 200, 0, 64, 2}, Size{1, 70, 0, 130, 1}}) {
    for (const bool flag : {false, true}) {
      if (emu::races::kDetected && (size.n != 7 || !flag)) continue;
      InfoNceShape s{size.pairs, size.n, size.n, 0, size.d, flag || size.n != 7, true, flag, 1e-3,
                     Precision::kFull, size.processors, false};
      InfoNceShape hopper = s, fast = s;
      hopper.hopper = true, fast.precision = Precision::kTf32;
      wrong += check<float, float>("float", s, 0.3, 2e-6, Rest::kPadding);
      wrong += check<float, float>("tf32", fast, 0.3, 1e-4, Rest::kPadding);
      wrong += check<bf16, float>("bf16", s, 0.3, 1e-2, Rest::kPadding);
      wrong += check<bf16, float>("bf16, wgmma", hopper, 0.3, 1e-2, Rest::kPadding);
      wrong += check<double, double>("double", s, 0.3, 1e-13, Rest::kPadding);
      setenv("MMSSL_INFO_NCE", "tiles", 1);
      wrong += check<bf16, float>("bf16, tiles", s, 0.3, 1e-2, Rest::kPadding);
      unsetenv("MMSSL_INFO_NCE");
      cases += 6;
      if (size.n != 7) continue;
      wrong += check<float, float>("float", s, 0.01, 4e-5, Rest::kPadding);
      wrong += check<bf16, float>("bf16, wgmma", hopper, 0.01, 1e-2, Rest::kPadding);
      cases += 2;
    }
  }
  if (wrong == 0) std::printf("ok: %d cases\n", cases);
  return wrong != 0;
}
