// The CUDA kernels of view_attention, run on the CPU against the definition in double; the gradients
// against differences of it.
//   cd csrc/ops/view_attention && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/view_attention/kernels.cuh"

namespace {

using mmssl::ViewAttentionSize;
using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::normal;
using Doubles = std::vector<double>;

template <class T>
Doubles widened(const std::vector<T>& values) {
  Doubles out;
  for (const T& v : values) out.push_back(as_double(v));
  return out;
}

// out (H, D) of one node.
Doubles attend(const ViewAttentionSize& s, int64_t node, const Doubles& query, const Doubles& key,
               const Doubles& view) {
  const int64_t width = s.dim / s.heads;
  const auto at = [&](int64_t m) { return (m * s.nodes + node) * s.dim; };
  Doubles out(s.heads * s.dim, 0.0);
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t a = 0; a < s.views; ++a) {
      Doubles p(s.views);
      double sum = 0;
      for (int64_t b = 0; b < s.views; ++b) {
        double score = 0;
        for (int64_t k = h * width; k < (h + 1) * width; ++k) {
          score += query[at(a) + k] * key[at(b) + k];
        }
        sum += p[b] = std::exp(score / std::sqrt(double(width)));
      }
      for (int64_t b = 0; b < s.views; ++b) {
        for (int64_t k = 0; k < s.dim; ++k) {
          out[h * s.dim + k] += p[b] / sum / double(s.views) * view[at(b) + k];
        }
      }
    }
  }
  return out;
}

// Returns the number of wrong results.
template <class T, class A>
int check(ViewAttentionSize s, double tolerance) {
  std::mt19937 random(3);
  const int64_t count = s.views * s.nodes * s.dim, outputs = s.nodes * s.heads * s.dim;
  std::vector<T> inputs[3], found[3];
  for (auto& x : inputs) x = normal<T>(count, random);
  for (auto& x : found) x.resize(count);
  const auto grad = normal<T>(outputs, random);
  std::vector<T> out(outputs);
  mmssl::cuda::launch_view_attention<T, A>(s, inputs[0].data(), inputs[1].data(), inputs[2].data(),
                                           out.data(), nullptr);
  mmssl::cuda::launch_view_attention_backward<T, A>(
      s, grad.data(), inputs[0].data(), inputs[1].data(), inputs[2].data(), found[0].data(),
      found[1].data(), found[2].data(), nullptr);
  Doubles x[3] = {widened(inputs[0]), widened(inputs[1]), widened(inputs[2])};
  int wrong = 0;
  const auto close = [&](double value, double exact, double bound) {
    wrong += !(std::fabs(value - exact) <= bound * (1 + std::fabs(exact)));
  };
  for (int64_t node = 0; node < s.nodes; ++node) {
    const Doubles exact = attend(s, node, x[0], x[1], x[2]);
    for (int64_t k = 0; k < s.heads * s.dim; ++k) {
      close(as_double(out[node * s.heads * s.dim + k]), exact[k], tolerance);
    }
    const auto loss = [&] {
      const Doubles y = attend(s, node, x[0], x[1], x[2]);
      double sum = 0;
      for (int64_t k = 0; k < s.heads * s.dim; ++k) {
        sum += y[k] * as_double(grad[node * s.heads * s.dim + k]);
      }
      return sum;
    };
    for (int64_t n = 0; n < s.views * s.dim; n += 1 + s.dim / 7) {
      const int64_t at = (n / s.dim * s.nodes + node) * s.dim + n % s.dim;
      for (int input = 0; input < 3; ++input) {
        const double kept = x[input][at], step = 1e-5;
        x[input][at] = kept + step;
        const double above = loss();
        x[input][at] = kept - step;
        const double slope = (above - loss()) / (2 * step);
        x[input][at] = kept;
        close(as_double(found[input][at]), slope, std::max(tolerance, 1e-8));
      }
    }
  }
  if (wrong > 0) {
    std::printf("M = %d, N = %d, D = %d, H = %d: %d wrong\n", int(s.views), int(s.nodes), int(s.dim),
                int(s.heads), wrong);
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int64_t views : {1, 2, 3, 9}) {
    for (int64_t nodes : {0, 1, 19}) {
      wrong += check<float, float>({views, nodes, 12, 3}, 1e-5);
      wrong += check<double, double>({views, nodes, 5, 1}, 1e-12);
      wrong += check<bf16, float>({views, nodes, 6, 6}, 2e-2);
    }
  }
  wrong += check<float, float>({2, 5, 64, 4}, 1e-5);
  wrong += check<float, float>({60, 2, 8, 4}, 1e-5);  // one warp in a block
  std::printf(wrong == 0 ? "emulated CUDA view_attention: ok\n"
                         : "emulated CUDA view_attention: FAILED\n");
  return wrong != 0;
}
