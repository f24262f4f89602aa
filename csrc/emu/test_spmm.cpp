// The CUDA kernels of spmm, run on the CPU against a plain loop in double.
//   g++ -std=c++20 -DMMSSL_EMULATE_CUDA -Icsrc -x c++ csrc/emu/test_spmm.cpp csrc/cuda/spmm.cu
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/spmm.cuh"

namespace {

using mmssl::bf16;
using mmssl::SparseArgs;

double widen(double v) { return v; }
double widen(bf16 v) { return mmssl::to_float(v); }
void narrow(double v, double& out) { out = v; }
void narrow(double v, float& out) { out = float(v); }
void narrow(double v, bf16& out) { out = mmssl::to_bf16(float(v)); }

struct Graph {
  std::vector<int64_t> rowptr{0};
  std::vector<int32_t> col;
  int64_t columns = 0;
};

Graph make_graph(const std::vector<int64_t>& degrees, int64_t columns, std::mt19937& random) {
  Graph graph;
  graph.columns = columns;
  for (int64_t degree : degrees) {
    for (int64_t i = 0; i < degree; ++i) graph.col.push_back(int32_t(random() % columns));
    graph.rowptr.push_back(int64_t(graph.col.size()));
  }
  return graph;
}

// Returns the number of wrong entries of spmm and of its value gradient.
template <class T, class A>
int check(const char* name, const Graph& graph, int64_t d, bool weighted, bool shifted,
          double tolerance) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const int64_t rows = int64_t(graph.rowptr.size()) - 1, nnz = int64_t(graph.col.size());
  const auto fill = [&](auto& values) {
    for (auto& v : values) narrow(normal(random), v);
  };
  std::vector<T> storage(graph.columns * d + 1), g(rows * d), y(rows * d);
  std::vector<A> row_scale(rows), col_scale(graph.columns), value(nnz), out(nnz);
  fill(storage), fill(g), fill(row_scale), fill(col_scale), fill(value);
  const T* x = storage.data() + (shifted ? 1 : 0);  // shifted: no 16-byte loads
  std::vector<int64_t> edge(nnz);
  for (int64_t p = 0; p < nnz; ++p) edge[p] = nnz - 1 - p;
  SparseArgs<A> a{rows, nnz, graph.rowptr.data(), graph.col.data(), row_scale.data(),
                  nullptr, nullptr, nullptr};
  if (weighted) a.col_scale = col_scale.data(), a.value = value.data(), a.edge = edge.data();

  std::vector<A> scratch(mmssl::cuda::spmm_scratch_rows(nnz) * d, A(NAN));
  mmssl::cuda::launch_spmm(a, x, y.data(), d, scratch.data(), nullptr);
  const bool with_gradient = nnz < 2 * mmssl::kChunkEdges;  // its shuffles are slow to emulate
  if (with_gradient) mmssl::cuda::launch_spmm_value_grad(a, g.data(), x, out.data(), d, nullptr);

  int wrong = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < d; ++k) {
      double sum = 0, size = 1e-3;
      for (int64_t p = graph.rowptr[r]; p < graph.rowptr[r + 1]; ++p) {
        const int32_t c = graph.col[p];
        const double w = weighted ? double(value[edge[p]]) * col_scale[c] : 1.0;
        const double term = row_scale[r] * w * widen(x[c * d + k]);
        sum += term, size += std::fabs(term);
      }
      wrong += !(std::fabs(widen(y[r * d + k]) - sum) <= tolerance * size);
    }
    for (int64_t p = graph.rowptr[r]; with_gradient && p < graph.rowptr[r + 1]; ++p) {
      const int32_t c = graph.col[p];
      double dot = 0, size = 1e-3;
      for (int64_t k = 0; k < d; ++k) {
        const double term = widen(g[r * d + k]) * widen(x[c * d + k]);
        dot += term, size += std::fabs(term);
      }
      const double scale = row_scale[r] * (weighted ? double(col_scale[c]) : 1.0);
      const double found = out[weighted ? edge[p] : p];
      wrong += !(std::fabs(found - scale * dot) <= 1e-5 * (std::fabs(scale) * size + 1e-3));
    }
  }
  if (wrong > 0) {
    std::printf("%s, D = %d%s%s: %d wrong entries\n", name, int(d), weighted ? ", weighted" : "",
                shifted ? ", unaligned" : "", wrong);
  }
  return wrong;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const int64_t chunk = mmssl::kChunkEdges;
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
  };
  int wrong = 0;
  for (const auto& [name, degrees] : cases) {
    const Graph graph = make_graph(degrees, 23, random);
    for (int64_t d : {3, 64, 132}) {
      for (bool weighted : {false, true}) {
        wrong += check<float, float>(name, graph, d, weighted, false, 1e-5);
        wrong += check<bf16, float>(name, graph, d, weighted, false, 1e-2);
      }
      wrong += check<double, double>(name, graph, d, true, false, 1e-12);
    }
    wrong += check<float, float>(name, graph, 64, true, true, 1e-5);
  }
  std::printf(wrong == 0 ? "emulated CUDA spmm: ok\n" : "emulated CUDA spmm: FAILED\n");
  return wrong != 0;
}
