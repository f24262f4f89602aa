// Checks and unpacks the tensors of the operators that build index arrays, and binds them to their
// CUDA kernels. Shapes: index.h.
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/cuda_binding.h"
#include "ops/index/kernels.cuh"

namespace {

using namespace mmssl;

// A matrix by row, and the results of its like.
struct Matrix {
  Matrix(const Tensor& rowptr_, const Tensor& col_)
      : rowptr(as_contiguous(rowptr_)), col(as_contiguous(col_)) {
    STD_TORCH_CHECK(matches(rowptr, rowptr, ScalarType::Long, {kAny}) && rowptr.size(0) >= 1 &&
                        matches(col, rowptr, ScalarType::Int, {kAny}),
                    "mmssl::index_of_rows: rowptr must be (R + 1,) int64 and col (E,) int32, on one "
                    "device");
  }
  Tensor rowptr, col;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> index_of_rows(
    const Tensor& rowptr_, const Tensor& col_, const Tensor& rows_, int64_t num_cols,
    int64_t capacity) {
  const Matrix a(rowptr_, col_);
  const Tensor rows = as_contiguous(rows_);
  STD_TORCH_CHECK(matches(rows, a.rowptr, ScalarType::Long, {kAny}) && num_cols >= 0 && capacity >= 0,
                  "mmssl::index_of_rows: rows must be (B,) int64 on the device of rowptr");
  const int64_t count = rows.size(0);
  const cuda::Launch launch(a.rowptr, cuda::index_scratch(1, num_cols, capacity));
  const Tensor position = new_empty(rows, {capacity}), item = new_empty(rows, {capacity});
  const Tensor rowptr = new_empty(rows, {count + 1}), col = new_empty(a.col, {capacity});
  const Tensor t_rowptr = new_empty(rows, {num_cols + 1}), t_col = new_empty(a.col, {capacity});
  const Tensor t_edge = new_empty(rows, {capacity});
  const Tensor live = new_empty(rows, {capacity}, ScalarType::Bool);
  MMSSL_CUDA_CHECK(cuda::launch_index_of_rows(
      {data<int64_t>(a.rowptr), data<int32_t>(a.col), data<int64_t>(rows),
       mutable_data<int64_t>(position), mutable_data<int64_t>(item), mutable_data<bool>(live)},
      {1, count, num_cols, capacity, mutable_data<int64_t>(rowptr), mutable_data<int32_t>(col),
       mutable_data<int64_t>(t_rowptr), mutable_data<int32_t>(t_col), mutable_data<int64_t>(t_edge)},
      launch.scratch<void>(), launch.device.stream));
  return {position, item, rowptr, col, t_rowptr, t_col, t_edge, live};
}

// Overwrites the arrays of M matrices.
void index_of_lists(const Tensor& lists_, const Tensor& rowptr_, const Tensor& col_,
                    const Tensor& out_rowptr, const Tensor& out_col, const Tensor& out_t_rowptr,
                    const Tensor& out_t_col, const Tensor& scale, const Tensor& t_scale, bool root) {
  const Matrix a(rowptr_, col_);
  const Tensor lists = as_contiguous(lists_);
  const int64_t rows = a.rowptr.size(0) - 1;
  STD_TORCH_CHECK(matches(lists, a.rowptr, ScalarType::Int, {kAny, rows, kAny}) &&
                      out_t_rowptr.dim() == 2 && out_t_rowptr.size(1) >= 1,
                  "mmssl::index_of_lists: lists must be (M, R, k) int32 on the device of rowptr");
  const int64_t matrices = lists.size(0), k = lists.size(2), columns = out_t_rowptr.size(1) - 1;
  const int64_t capacity = rows * k + a.col.size(0);
  const auto check = [&](const Tensor& t, ScalarType type, int64_t length) {
    STD_TORCH_CHECK(matches(t, a.rowptr, type, {matrices, length}) && t.is_contiguous(),
                    "mmssl::index_of_lists: expected results of M rows, contiguous, on the device of "
                    "rowptr: int64 pointers, int32 edges, float32 scales");
  };
  check(out_rowptr, ScalarType::Long, rows + 1), check(out_t_rowptr, ScalarType::Long, columns + 1);
  check(out_col, ScalarType::Int, capacity), check(out_t_col, ScalarType::Int, capacity);
  check(scale, ScalarType::Float, rows), check(t_scale, ScalarType::Float, columns);
  const cuda::Launch launch(a.rowptr, cuda::index_scratch(matrices, columns, capacity));
  const IndexArrays out{matrices,
                        rows,
                        columns,
                        capacity,
                        mutable_data<int64_t>(out_rowptr),
                        mutable_data<int32_t>(out_col),
                        mutable_data<int64_t>(out_t_rowptr),
                        mutable_data<int32_t>(out_t_col),
                        nullptr,
                        mutable_data<float>(scale),
                        mutable_data<float>(t_scale),
                        root};
  MMSSL_CUDA_CHECK(cuda::launch_index_of_lists(
      {data<int32_t>(lists), k, data<int64_t>(a.rowptr), data<int32_t>(a.col), a.col.size(0)}, out,
      launch.scratch<void>(), launch.device.stream));
}

void store_lists(const Tensor& lists, const Tensor& pick_, const std::vector<Tensor>& top_) {
  const Tensor pick = as_contiguous(pick_);
  STD_TORCH_CHECK(lists.dim() == 3 && lists.scalar_type() == ScalarType::Int &&
                      lists.is_contiguous() && lists.size(0) == int64_t(top_.size()) &&
                      matches(pick, lists, ScalarType::Long, {kAny}),
                  "mmssl::store_lists: lists must be (M, R, k) int32, contiguous, for M new lists, and "
                  "pick (B,) int64 on the same device");
  const int64_t matrices = lists.size(0), rows = lists.size(1), k = lists.size(2);
  const int64_t count = pick.size(0);
  const cuda::CurrentDevice device(lists);
  std::vector<Tensor> top;
  for (const Tensor& t : top_) {
    STD_TORCH_CHECK(matches(t, lists, ScalarType::Long, {count, k}),
                    "mmssl::store_lists: new lists must be (B, k) int64 on the device of lists");
    top.push_back(as_contiguous(t));
  }
  for (int64_t first = 0; first < matrices; first += StoredLists::kMost) {
    StoredLists a{std::min(StoredLists::kMost, matrices - first), rows, k, count,
                  data<int64_t>(pick), {}, mutable_data<int32_t>(lists) + first * rows * k};
    for (int64_t n = 0; n < a.matrices; ++n) a.top[n] = data<int64_t>(top[first + n]);
    MMSSL_CUDA_CHECK(cuda::launch_store_lists(a, device.stream));
  }
}

Tensor degree_scale(const Tensor& rowptr_, bool root) {
  const Tensor rowptr = as_contiguous(rowptr_);
  STD_TORCH_CHECK(matches(rowptr, rowptr, ScalarType::Long, {kAny}) && rowptr.size(0) >= 1,
                  "mmssl::degree_scale: rowptr must be (R + 1,) int64");
  const int64_t rows = rowptr.size(0) - 1;
  const cuda::CurrentDevice device(rowptr);
  const Tensor scale = new_empty(rowptr, {rows}, ScalarType::Float);
  MMSSL_CUDA_CHECK(cuda::launch_degree_scale(data<int64_t>(rowptr), rows, root,
                                             mutable_data<float>(scale), device.stream));
  return scale;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("index_of_rows", TORCH_BOX(&index_of_rows));
  m.impl("index_of_lists", TORCH_BOX(&index_of_lists));
  m.impl("store_lists", TORCH_BOX(&store_lists));
  m.impl("degree_scale", TORCH_BOX(&degree_scale));
}
