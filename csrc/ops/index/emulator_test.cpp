// The CUDA kernels that build index arrays, run on the CPU against plain lists.
//   cd csrc/ops/index && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "ops/index/kernels.cuh"

namespace {

int wrong = 0;
using Rows = std::vector<std::vector<int32_t>>;  // ascending columns by row

struct Arrays {
  Arrays(int64_t matrices, int64_t rows, int64_t columns, int64_t capacity)
      : sizes{matrices, rows, columns, capacity},
        rowptr(matrices * (rows + 1), -1),
        t_rowptr(matrices * (columns + 1), -1),
        t_edge(matrices * capacity, -1),
        col(matrices * capacity, -1),
        t_col(matrices * capacity, -1),
        scratch(mmssl::cuda::index_scratch(matrices, columns, capacity) / 4 + 1, -7) {}
  mmssl::IndexArrays pointers() {
    return {sizes[0],        sizes[1],     sizes[2],       sizes[3],
            rowptr.data(),   col.data(),   t_rowptr.data(), t_col.data(), t_edge.data()};
  }
  void compare(int64_t matrix, const Rows& expected) const {
    const int64_t rows = sizes[1], columns = sizes[2], n = sizes[3];
    const int64_t* p = rowptr.data() + matrix * (rows + 1);
    const int64_t* t = t_rowptr.data() + matrix * (columns + 1);
    int64_t at = 0;
    Rows by_column(columns);
    std::vector<std::vector<int64_t>> edges(columns);
    for (int64_t r = 0; r < rows; ++r) {
      wrong += p[r] != at;
      for (const int32_t c : expected[r]) {
        by_column[c].push_back(int32_t(r)), edges[c].push_back(at);
        wrong += col[matrix * n + at++] != c;
      }
    }
    wrong += p[rows] != at;
    const int64_t used = at;
    for (int64_t e = used; e < n; ++e) wrong += t_edge[matrix * n + e] != e;
    at = 0;
    for (int64_t c = 0; c < columns; ++c) {
      wrong += t[c] != at;
      for (size_t j = 0; j < edges[c].size(); ++j, ++at) {
        wrong += t_col[matrix * n + at] != by_column[c][j] || t_edge[matrix * n + at] != edges[c][j];
      }
    }
    wrong += t[columns] != used;
  }

  int64_t sizes[4];
  std::vector<int64_t> rowptr, t_rowptr, t_edge;
  std::vector<int32_t> col, t_col;
  std::vector<int32_t> scratch;
};

struct Matrix {
  std::vector<int64_t> rowptr{0};
  std::vector<int32_t> col;
  Rows rows;
};
Matrix matrix(int64_t rows, int64_t columns, int64_t share, std::mt19937& random) {
  Matrix m;
  for (int64_t r = 0; r < rows; ++r) {
    m.rows.emplace_back();
    for (int64_t c = 0; c < columns; ++c) {
      if (r % 5 != 3 && int64_t(random() % 100) < (c == 0 ? 90 : share)) m.rows[r].push_back(int32_t(c));
    }
    m.col.insert(m.col.end(), m.rows[r].begin(), m.rows[r].end());
    m.rowptr.push_back(int64_t(m.col.size()));
  }
  return m;
}

void check_rows(int64_t rows, int64_t columns, int64_t batch, int64_t more) {
  std::mt19937 random(3);
  const Matrix m = matrix(rows, columns, 20, random);
  std::vector<int64_t> pick(rows);
  for (int64_t r = 0; r < rows; ++r) pick[r] = r;
  std::shuffle(pick.begin(), pick.end(), random);
  pick.resize(batch);
  Rows expected;
  int64_t used = 0;
  for (const int64_t r : pick) expected.push_back(m.rows[r]), used += int64_t(m.rows[r].size());
  Arrays out(1, batch, columns, used + more);
  std::vector<int64_t> position(used + more, -1), item(used + more, -1);
  std::vector<char> live(used + more, 7);
  mmssl::cuda::launch_index_of_rows({m.rowptr.data(), m.col.data(), pick.data(), position.data(),
                                     item.data(), reinterpret_cast<bool*>(live.data())},
                                    out.pointers(), out.scratch.data(), nullptr);
  out.compare(0, expected);
  int64_t at = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (const int32_t c : expected[b]) {
      wrong += position[at] != b || item[at] != c || live[at] != 1;
      ++at;
    }
  }
  for (; at < used + more; ++at) {
    wrong += live[at] != 0;
    if (used > 0) wrong += position[at] != position[used - 1] || item[at] != item[used - 1];
  }
}

void check_lists(int64_t matrices, int64_t rows, int64_t columns, int64_t k) {
  std::mt19937 random(4);
  const Matrix m = matrix(rows, columns, 15, random);
  std::vector<int32_t> lists(matrices * rows * k, -1);
  std::vector<Rows> expected(matrices, m.rows);
  for (int64_t at = 0; at < matrices * rows; ++at) {
    std::vector<int32_t> all(columns);
    for (int64_t c = 0; c < columns; ++c) all[c] = int32_t(c);
    std::shuffle(all.begin(), all.end(), random);
    all.resize(std::min<int64_t>(int64_t(random() % (k + 1)), columns));
    std::copy(all.begin(), all.end(), lists.begin() + at * k);
    std::shuffle(lists.begin() + at * k, lists.begin() + (at + 1) * k, random);
    std::sort(all.begin(), all.end());
    if (!all.empty()) expected[at / rows][at % rows] = all;
  }
  const int64_t nnz = int64_t(m.col.size());
  Arrays out(matrices, rows, columns, rows * k + nnz);
  std::vector<float> scales(matrices * rows, NAN), t_scales(matrices * columns, NAN);
  mmssl::IndexArrays arrays = out.pointers();
  arrays.scale = scales.data(), arrays.t_scale = t_scales.data(), arrays.root = true;
  mmssl::cuda::launch_index_of_lists({lists.data(), k, m.rowptr.data(), m.col.data(), nnz}, arrays,
                                     out.scratch.data(), nullptr);
  for (int64_t n = 0; n < matrices; ++n) out.compare(n, expected[n]);
  const auto check_scales = [](const std::vector<int64_t>& pointers, int64_t count, int64_t many,
                               const std::vector<float>& scales) {
    for (int64_t at = 0; at < many * count; ++at) {
      const int64_t p = at / count * (count + 1) + at % count;
      const double degree = double(pointers[p + 1] - pointers[p]);
      wrong += !(std::fabs(scales[at] - (degree > 0 ? 1 / std::sqrt(degree) : 0)) <= 1e-6);
    }
  };
  check_scales(out.rowptr, rows, matrices, scales), check_scales(out.t_rowptr, columns, matrices, t_scales);
  std::vector<float> scale(rows, NAN);
  mmssl::cuda::launch_degree_scale(m.rowptr.data(), rows, true, scale.data(), nullptr);
  check_scales(m.rowptr, rows, 1, scale);

  std::vector<int64_t> pick(rows), top(matrices * 2 * k);
  for (int64_t r = 0; r < rows; ++r) pick[r] = r;
  std::shuffle(pick.begin(), pick.end(), random);
  for (auto& item : top) item = int64_t(random() % columns) - 1;
  mmssl::StoredLists stored{matrices, rows, k, 2, pick.data(), {}, lists.data()};
  for (int64_t n = 0; n < matrices; ++n) stored.top[n] = top.data() + n * 2 * k;
  std::vector<int32_t> after = lists;
  for (int64_t at = 0; at < int64_t(top.size()); ++at) {
    const int64_t row = at / (2 * k) * rows + pick[at / k % 2];
    after[row * k + at % k] = int32_t(top[at]);
  }
  mmssl::cuda::launch_store_lists(stored, nullptr);
  wrong += lists != after;
}

}  // namespace

int main() {
  for (int64_t more : {0, 1, 70}) {
    check_rows(40, 9, 23, more);
    check_rows(1, 3, 1, more);
    check_rows(4, 3, 0, more);
    check_rows(300, 11, 300, more);
  }
  for (int64_t k : {1, 2, 7}) {
    check_lists(1, 33, 20, k);
    check_lists(3, 150, 10, k);
  }
  std::printf(wrong == 0 ? "emulated CUDA index: ok\n" : "emulated CUDA index: FAILED (%d)\n", wrong);
  return wrong != 0;
}
