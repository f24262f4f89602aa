// The CUDA kernels of propagate_layers, run on the CPU against plain loops in double.
//   g++ -std=c++20 -DMMSSL_EMULATE_CUDA -Icsrc -x c++ csrc/ops/propagate_layers/emulator_test.cpp
//   csrc/ops/propagate/kernels.cu
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "emu/numbers.h"
#include "ops/propagate_layers/kernels.cuh"

namespace {

using mmssl::Layers;
using mmssl::SparseArgs;
using mmssl::Sides;
using mmssl::test::as_double;

using Doubles = std::vector<double>;

// A random graph by user and by item; user 0 has `hub` edges.
struct Graph {
  Graph(int64_t users, int64_t items, int64_t degree, int64_t hub) : users(users), items(items) {
    std::mt19937 random(5);
    std::vector<std::vector<std::pair<int32_t, int64_t>>> by_item(items);
    for (int64_t u = 0; u < users; ++u) {
      for (int64_t e = 0; e < (u == 0 ? hub : degree); ++e) {
        const int32_t item = int32_t(random() % items);
        by_item[item].push_back({int32_t(u), int64_t(col.size())});
        col.push_back(item), row_of.push_back(u);
      }
      rowptr.push_back(int64_t(col.size()));
    }
    for (const auto& edges : by_item) {
      for (const auto& [user, position] : edges) t_col.push_back(user), t_edge.push_back(position);
      t_rowptr.push_back(int64_t(t_col.size()));
    }
  }
  int64_t users, items;
  std::vector<int64_t> rowptr{0}, t_rowptr{0}, t_edge, row_of;
  std::vector<int32_t> col, t_col;
};

template <class T>
Doubles widened(const std::vector<T>& values) {
  Doubles out;
  for (const T& v : values) out.push_back(as_double(v));
  return out;
}

// y = M x in double, for both sides in one table; the magnitude of the terms goes to size.
template <class A>
Doubles multiply(const Graph& g, const Layers<A>& m, const Doubles& x, bool absolute) {
  Doubles y(x.size());
  const auto scale = [](const A* s, int64_t n) { return s == nullptr ? 1.0 : double(s[n]); };
  for (size_t p = 0; p < g.col.size(); ++p) {
    const int64_t u = g.row_of[p], i = g.col[p];
    const double value = m.ui.value == nullptr ? 1.0 : double(m.ui.value[p]);
    double ui = value * scale(m.ui.row_scale, u) * scale(m.ui.col_scale, i);
    double iu = value * scale(m.iu.row_scale, i) * scale(m.iu.col_scale, u);
    if (absolute) ui = std::fabs(ui), iu = std::fabs(iu);
    for (int64_t k = 0; k < m.d; ++k) {
      y[u * m.d + k] += ui * x[(g.users + i) * m.d + k];
      y[(g.users + i) * m.d + k] += iu * x[u * m.d + k];
    }
  }
  return y;
}

// scale * (x + M x + ... + M^L x); with `absolute` for the absolute values of everything.
template <class A>
Doubles expected(const Graph& g, const Layers<A>& m, Doubles x, bool absolute = false) {
  if (absolute) {
    for (double& v : x) v = std::fabs(v);
  }
  Doubles sum = x;
  for (int64_t l = 0; l < m.count; ++l) {
    x = multiply(g, m, x, absolute);
    for (size_t n = 0; n < sum.size(); ++n) sum[n] += x[n];
  }
  for (double& v : sum) v *= m.scale;
  return sum;
}

template <class T>
int wrong(const std::vector<T>& got, const Doubles& want, const Doubles& size, double tolerance) {
  int count = 0;
  for (size_t n = 0; n < got.size(); ++n) {
    count += !(std::fabs(as_double(got[n]) - want[n]) <= tolerance * (size[n] + 1e-3));
  }
  return count;
}

template <class A>
int check(const Graph& g, int64_t d, int64_t count, bool weighted, double tolerance) {
  std::mt19937 random(11);
  const int64_t nnz = int64_t(g.col.size());
  const auto numbers = [&](int64_t n) { return mmssl::test::normal<A>(n, random, 0.5); };
  const auto value = numbers(nnz), ur = numbers(g.users), uc = numbers(g.items);
  const auto ir = numbers(g.items), ic = numbers(g.users);
  SparseArgs<A> ui{g.users, nnz,     g.rowptr.data(), g.col.data(), ur.data(),
                   nullptr, nullptr, nullptr,         g.items};
  SparseArgs<A> iu{g.items, nnz,     g.t_rowptr.data(), g.t_col.data(), ir.data(),
                   nullptr, nullptr, nullptr,           g.users};
  if (weighted) {
    ui.col_scale = uc.data(), iu.col_scale = ic.data();
    ui.value = iu.value = value.data(), iu.edge = g.t_edge.data();
  }
  const Layers<A> m{ui, iu, d, count, A(1) / A(count + 1)};
  const auto x = mmssl::test::normal<A>(m.size(), random);
  std::vector<A> out(m.size(), A(NAN)), layers(m.scratch(), A(NAN));
  std::vector<A> scratch(mmssl::cuda::hop_scratch(m), A(NAN));
  const auto launch = [&](auto products) {
    mmssl::cuda::launch_spmm(products, scratch.data(), nullptr);
  };
  const auto sides = [&](auto& t) { return Sides{t.data(), t.data() + g.users * d, d}; };
  run_layers(m, sides(x), sides(out), layers.data(), launch);
  const Doubles wide = widened(x);
  const int count_wrong =
      wrong(out, expected(g, m, wide), expected(g, m, wide, true), tolerance);
  if (count_wrong > 0) {
    std::printf("%d x %d, D = %d, L = %d%s: %d wrong entries\n", int(g.users), int(g.items), int(d),
                int(count), weighted ? ", weighted" : "", count_wrong);
  }
  return count_wrong;
}

}  // namespace

int main() {
  const Graph graphs[] = {{40, 23, 5, 3}, {9, 30, 3, 2 * mmssl::kChunkEdges + 7}, {3, 2, 0, 0},
                          {0, 4, 0, 0}};
  int wrong = 0;
  for (const Graph& g : graphs) {
    for (int64_t count : {1, 2, 3, 4}) {
      for (int64_t d : {3, 64}) {
        wrong += check<float>(g, d, count, count % 2 == 0, 1e-5);
      }
      wrong += check<double>(g, 5, count, true, 1e-12);
    }
  }
  std::printf(wrong == 0 ? "emulated CUDA propagate_layers: ok\n"
                         : "emulated CUDA propagate_layers: FAILED\n");
  return wrong != 0;
}
