// The CUDA kernels of spmm, run on the CPU against a plain loop in double.
//   cd csrc/ops/propagate && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp *.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "emu/numbers.h"
#include "ops/propagate/kernels.cuh"

namespace {

using mmssl::bf16;
using mmssl::test::as_double;
using mmssl::test::assign;
using mmssl::SparseArgs;

struct Graph {
  std::vector<int64_t> rowptr{0};
  std::vector<int32_t> col;
  int64_t columns = 0;
};

// behind: entries of col that belong to no row, and name no column.
Graph make_graph(const std::vector<int64_t>& degrees, int64_t columns, std::mt19937& random,
                 int64_t behind = 0) {
  Graph graph;
  graph.columns = columns;
  for (int64_t degree : degrees) {
    for (int64_t i = 0; i < degree; ++i) graph.col.push_back(int32_t(random() % columns));
    graph.rowptr.push_back(int64_t(graph.col.size()));
  }
  graph.col.resize(graph.col.size() + behind, INT32_MAX);
  return graph;
}

// One product with random numbers, and the same in double.
template <class T, class A>
struct Product {
  Product(const Graph& graph, int64_t d, bool weighted, bool shifted, int seed = 7)
      : graph(graph), d(d), weighted(weighted) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const int64_t rows = int64_t(graph.rowptr.size()) - 1, nnz = int64_t(graph.col.size());
    const auto fill = [&](auto& values, int64_t size) {
      values.resize(size);
      for (auto& v : values) assign(normal(random), v);
    };
    fill(storage, graph.columns * d + 1), fill(g, rows * d), fill(row_scale, rows);
    fill(col_scale, graph.columns), fill(value, nnz);
    x = storage.data() + (shifted ? 1 : 0);  // shifted: no 16-byte loads
    y.resize(rows * d), out.resize(nnz, A(NAN)), edge.resize(nnz);
    for (int64_t p = 0; p < nnz; ++p) edge[p] = nnz - 1 - p;
    a = {rows,    nnz,     graph.rowptr.data(), graph.col.data(), row_scale.data(),
         nullptr, nullptr, nullptr};
    if (weighted) a.col_scale = col_scale.data(), a.value = value.data(), a.edge = edge.data();
  }

  mmssl::SparseProduct<T, A> args() { return {a, x, y.data(), d}; }

  int wrong(double tolerance) const {
    int count = 0;
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t k = 0; k < d; ++k) {
        double sum = 0, size = 1e-3;
        for (int64_t p = graph.rowptr[r]; p < graph.rowptr[r + 1]; ++p) {
          const int32_t c = graph.col[p];
          const double w = weighted ? double(value[edge[p]]) * col_scale[c] : 1.0;
          const double term = row_scale[r] * w * as_double(x[c * d + k]);
          sum += term, size += std::fabs(term);
        }
        count += !(std::fabs(as_double(y[r * d + k]) - sum) <= tolerance * size);
      }
    }
    return count;
  }

  int wrong_gradients() const {
    int count = 0;
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t p = graph.rowptr[r]; p < graph.rowptr[r + 1]; ++p) {
        const int32_t c = graph.col[p];
        double dot = 0, size = 1e-3;
        for (int64_t k = 0; k < d; ++k) {
          const double term = as_double(g[r * d + k]) * as_double(x[c * d + k]);
          dot += term, size += std::fabs(term);
        }
        const double scale = row_scale[r] * (weighted ? double(col_scale[c]) : 1.0);
        const double found = out[weighted ? edge[p] : p];
        count += !(std::fabs(found - scale * dot) <= 1e-5 * (std::fabs(scale) * size + 1e-3));
      }
    }
    for (int64_t p = graph.rowptr.back(); p < a.nnz; ++p) count += out[weighted ? edge[p] : p] != 0;
    return count;
  }

  const Graph& graph;
  int64_t d;
  bool weighted;
  std::vector<T> storage, g, y;
  std::vector<A> row_scale, col_scale, value, out;
  std::vector<int64_t> edge;
  const T* x;
  SparseArgs<A> a;
};

template <class T, class A>
void run(std::vector<Product<T, A>>& products) {
  std::vector<mmssl::SparseProduct<T, A>> args;
  int64_t sums = 0;
  for (auto& p : products) {
    args.push_back(p.args());
    sums += mmssl::cuda::spmm_scratch_rows(p.a.nnz) * p.d;
  }
  std::vector<A> scratch(sums, A(NAN));
  mmssl::cuda::launch_spmm(std::span<const mmssl::SparseProduct<T, A>>(args), scratch.data(),
                           nullptr);
}

// Returns the number of wrong entries of spmm and of its value gradient.
template <class T, class A>
int check(const char* name, const Graph& graph, int64_t d, bool weighted, bool shifted,
          double tolerance) {
  std::vector<Product<T, A>> products;
  products.reserve(1);  // x points into its own storage
  products.emplace_back(graph, d, weighted, shifted);
  run(products);
  Product<T, A>& p = products[0];
  int wrong = p.wrong(tolerance);
  if (p.a.nnz < 1024) {  // the gradient's shuffles are slow to emulate
    mmssl::cuda::launch_spmm_value_grad(p.a, p.g.data(), p.x, p.out.data(), d, nullptr);
    wrong += p.wrong_gradients();
  }
  if (wrong > 0) {
    std::printf("%s, D = %d%s%s: %d wrong entries\n", name, int(d), weighted ? ", weighted" : "",
                shifted ? ", unaligned" : "", wrong);
  }
  return wrong;
}

// More products than one launch takes, of three widths, must equal the same products one by one.
template <class T, class A>
int check_batch(const std::vector<Graph>& graphs, double tolerance) {
  std::vector<Product<T, A>> batch;
  const int64_t widths[] = {64, 64, 64, 3, 64, 132};
  batch.reserve(4 * graphs.size());
  for (size_t n = 0; n < 4 * graphs.size(); ++n) {
    batch.emplace_back(graphs[n % graphs.size()], widths[n % 6], n % 5 == 1, n % 7 == 2, int(n));
  }
  run(batch);
  int wrong = 0;
  for (size_t n = 0; n < batch.size(); ++n) {
    const std::vector<T> together = batch[n].y;
    wrong += batch[n].wrong(tolerance);
    std::vector<Product<T, A>> alone;
    alone.reserve(1);
    alone.emplace_back(batch[n].graph, batch[n].d, batch[n].weighted, n % 7 == 2, int(n));
    run(alone);
    wrong += !together.empty() &&
             std::memcmp(together.data(), alone[0].y.data(), together.size() * sizeof(T)) != 0;
  }
  if (wrong > 0) std::printf("a batch of %d: %d wrong\n", int(batch.size()), wrong);
  return wrong;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const int64_t few = mmssl::kChunkEdges, chunk = mmssl::cuda::spmm_chunk_edges(few + 1);
  std::vector<int64_t> ordinary;
  for (int i = 0; i < 70; ++i) ordinary.push_back(random() % 9);
  const std::vector<std::pair<const char*, std::vector<int64_t>>> cases = {
      {"ordinary rows", ordinary},
      {"no edge", {0, 0, 0}},
      {"no row", {}},
      {"just short", {3, chunk, 1}},
      {"just long", {0, chunk + 1, 0}},
      {"long rows side by side", {5, chunk + 7, 0, 2 * chunk + 1, chunk + 1, 0, 2}},
      {"long rows on chunk bounds", {chunk, 2 * chunk, 0, 3 * chunk}},
      {"one long row", {4 * chunk + 3}},
      {"rows that a warp and a block add up", {7, 31 * chunk + 1, 3, 40 * chunk + 5, 33 * chunk}},
  };
  int wrong = 0;
  std::vector<Graph> small;
  for (const auto& [name, degrees] : cases) {
    std::vector<int64_t> rows = degrees;
    // Enough edges for chunks, if a row can be longer than one.
    if (std::count_if(rows.begin(), rows.end(), [&](int64_t n) { return n >= chunk; }) > 0) {
      rows.insert(rows.end(), few / 50 + 1, 50);
    }
    const Graph graph = make_graph(rows, 23, random);
    const bool many = graph.col.size() > 4000;
    for (int64_t d : {3, 64, 65, 132}) {
      if (many && d != 65) continue;  // slow
      for (bool weighted : {false, true}) {
        wrong += check<float, float>(name, graph, d, weighted, false, 1e-5);
        wrong += check<bf16, float>(name, graph, d, weighted, false, 1e-2);
      }
      wrong += check<double, double>(name, graph, d, true, false, 1e-12);
    }
    if (many) continue;
    wrong += check<float, float>(name, graph, 64, true, true, 1e-5);
    small.push_back(graph);
  }
  for (const auto& degrees : {ordinary, {3, few + 7, 0}, {2 * few + 5}}) {
    for (const int64_t behind : {int64_t(1), chunk, 2 * chunk + 3}) {
      const Graph graph = make_graph(degrees, 23, random, behind);
      wrong += check<float, float>("arrays longer than the edges", graph, 64, false, false, 1e-5);
      wrong += check<float, float>("arrays longer than the edges", graph, 3, true, false, 1e-5);
    }
  }
  const Graph few_edges = make_graph({1, 5 * chunk, 7}, 23, random);  // one launch
  wrong += check<float, float>("few edges", few_edges, 64, true, false, 1e-5);
  wrong += check_batch<float, float>(small, 1e-5);
  wrong += check_batch<bf16, float>(small, 1e-2);
  std::printf(wrong == 0 ? "emulated CUDA spmm: ok\n" : "emulated CUDA spmm: FAILED\n");
  return wrong != 0;
}
