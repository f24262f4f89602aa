// Checks and unpacks the tensors of spmm and propagate, and binds them to the kernels of either
// device.
#pragma once
#include "common/check_index.h"
#include "common/torch.h"
#include "ops/propagate/spmm.h"

namespace mmssl {

// A sparse matrix (R, C) on the device of x and in the dtypes that belong to it; its tensors are
// contiguous and kept alive while a kernel reads them.
class MatrixOperands {
 public:
  MatrixOperands(const Tensor& x, const Tensor& rowptr, const Tensor& col,
                 const OptTensor& row_scale, const OptTensor& col_scale, const OptTensor& value,
                 const OptTensor& edge, int64_t columns)
      : rowptr_(rowptr), col_(col), columns_(columns) {
    const ScalarType type = x.scalar_type(), sums = accumulation_type(type);
    STD_TORCH_CHECK(is_supported(type), "mmssl::spmm: x must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(matches(rowptr, x, ScalarType::Long, {kAny}) && rowptr.size(0) >= 1,
                    "mmssl::spmm: rowptr must be (R + 1,) int64 on the device of x");
    STD_TORCH_CHECK(matches(col, x, ScalarType::Int, {kAny}),
                    "mmssl::spmm: col must be (E,) int32 on the device of x");
    rowptr_ = as_contiguous(rowptr);
    col_ = as_contiguous(col);
    row_scale_ = vector(x, row_scale, sums, rows(), "row_scale must be (R,)");
    col_scale_ = vector(x, col_scale, sums, columns, "col_scale must be (C,)");
    value_ = vector(x, value, sums, nnz(), "value must be (E,)");
    edge_ = vector(x, edge, ScalarType::Long, nnz(), "edge must be (E,)");
  }

  int64_t rows() const { return rowptr_.size(0) - 1; }
  int64_t nnz() const { return col_.size(0); }

  // CPU only: on a GPU the entries are not checked, since that would wait for the device.
  void check_rowptr() const {
    STD_TORCH_CHECK(cpu::is_rowptr(data<int64_t>(rowptr_), rows(), nnz(), torch_threads()),
                    "mmssl::spmm: rowptr must be non-decreasing from 0 to nnz = ", nnz());
  }
  // Names the array that made a kernel return false. Another thread may have corrected it by now.
  void report_bad_index() const {
    const Parallel pool = torch_threads();
    STD_TORCH_CHECK(cpu::ids_in_range(data<int32_t>(col_), nnz(), columns_, pool),
                    "mmssl::spmm: col must lie in [0, ", columns_, ")");
    STD_TORCH_CHECK(!edge_.has_value() ||
                        cpu::ids_in_range(data<int64_t>(*edge_), nnz(), nnz(), pool),
                    "mmssl::spmm: edge must lie in [0, ", nnz(), ")");
  }

  template <class A>
  SparseArgs<A> args() const {
    return {rows(),
            nnz(),
            data<int64_t>(rowptr_),
            data<int32_t>(col_),
            data<A>(row_scale_),
            data<A>(col_scale_),
            data<A>(value_),
            data<int64_t>(edge_),
            columns_};
  }

 private:
  static OptTensor vector(const Tensor& x, const OptTensor& t, ScalarType type, int64_t size,
                          const char* what) {
    STD_TORCH_CHECK(matches(t, x, type, {size}), "mmssl::spmm: ", what,
                    " of the type sums are kept in (edge: int64), on the device of x");
    return as_contiguous(t);
  }

  Tensor rowptr_, col_;
  int64_t columns_;
  OptTensor row_scale_, col_scale_, value_, edge_;
};

// A batch of products and, unless its results lie elsewhere, these, empty. The lists are as long as x; entry n of each belongs to
// product n, and all x have one dtype and lie on one device.
struct PropagateOperands {
  PropagateOperands(const Tensors& x_, const Tensors& rowptr, const Tensors& col,
                    const Tensors& t_rowptr, const OptTensors& row_scale,
                    const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                    bool with_results = true) {
    const size_t count = x_.size();
    STD_TORCH_CHECK(rowptr.size() == count && col.size() == count &&
                        t_rowptr.size() == count && row_scale.size() == count &&
                        col_scale.size() == count && value.size() == count && edge.size() == count,
                    "mmssl::propagate: lists must be as long as x, ", count);
    for (size_t n = 0; n < count; ++n) {
      STD_TORCH_CHECK(t_rowptr[n].dim() == 1 && t_rowptr[n].size(0) >= 1,
                      "mmssl::spmm: t_rowptr must be (C + 1,)");
      const int64_t columns = t_rowptr[n].size(0) - 1;
      STD_TORCH_CHECK(matches(x_[n], x_[0], x_[0].scalar_type(), {columns, kAny}),
                      "mmssl::spmm: x must be (C, D) with C = ", columns,
                      ", of one dtype and on one device");
      x.push_back(as_contiguous(x_[n]));
      matrix.emplace_back(x[n], rowptr[n], col[n], row_scale[n], col_scale[n], value[n], edge[n],
                          columns);
      if (with_results) y.push_back(new_empty(x[n], {matrix[n].rows(), x[n].size(1)}));
    }
  }

  template <class T, class A>
  std::vector<SparseProduct<T, A>> args() const {
    std::vector<SparseProduct<T, A>> out;
    for (size_t n = 0; n < x.size(); ++n) {
      out.push_back(
          {matrix[n].template args<A>(), data<T>(x[n]), mutable_data<T>(y[n]), x[n].size(1)});
    }
    return out;
  }

  Tensors x, y;  // (C, D) and (R, D) each
  std::vector<MatrixOperands> matrix;
};

// The gradient for the values of one product: grad (R, D), x (C, D).
struct ValueGradOperands {
  ValueGradOperands(const Tensor& grad_, const Tensor& x_, const Tensor& rowptr, const Tensor& col,
                    const Tensor& t_rowptr, const OptTensor& row_scale, const OptTensor& col_scale,
                    const OptTensor& edge)
      : grad(as_contiguous(checked(grad_, x_, rowptr, t_rowptr))),
        x(as_contiguous(x_)),
        matrix(x, rowptr, col, row_scale, col_scale, std::nullopt, edge, x.size(0)) {}

  Tensor new_out() const {
    return new_empty(x, {matrix.nnz()}, accumulation_type(x.scalar_type()));
  }

  Tensor grad, x;
  MatrixOperands matrix;

 private:
  static const Tensor& checked(const Tensor& grad, const Tensor& x, const Tensor& rowptr,
                               const Tensor& t_rowptr) {
    STD_TORCH_CHECK(
        t_rowptr.dim() == 1 && rowptr.dim() == 1 && x.dim() == 2 &&
            x.size(0) == t_rowptr.size(0) - 1 &&
            matches(grad, x, x.scalar_type(), {rowptr.size(0) - 1, x.size(1)}),
        "mmssl::spmm_value_grad: grad must be (R, D) and x (C, D) of one dtype on one device");
    return grad;
  }
};

template <class Products>
Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors&, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors&) {
  const PropagateOperands o(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  if (o.x.empty()) return {};
  const Products products(o);
  for_dtype(o.x[0].scalar_type(), [&](auto storage, auto sum) {
    const auto args = o.args<decltype(storage), decltype(sum)>();
    products(std::span(args));
  });
  return o.y;
}

// A batch of one product.
template <class Products>
Tensor spmm(const Tensor& x, const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr,
            const Tensor& t_col, const OptTensor& row_scale, const OptTensor& col_scale,
            const OptTensor& value, const OptTensor& edge, const OptTensor& t_edge) {
  return propagate<Products>({x}, {rowptr}, {col}, {t_rowptr}, {t_col}, {row_scale}, {col_scale},
                             {value}, {edge}, {t_edge})[0];
}

template <class ValueGrad>
Tensor spmm_value_grad(const Tensor& grad, const Tensor& x, const Tensor& rowptr,
                       const Tensor& col, const Tensor& t_rowptr, const Tensor&,
                       const OptTensor& row_scale, const OptTensor& col_scale,
                       const OptTensor& edge, const OptTensor&) {
  const ValueGradOperands o(grad, x, rowptr, col, t_rowptr, row_scale, col_scale, edge);
  const ValueGrad value_grad(o);
  const Tensor out = o.new_out();
  for_dtype(o.x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    value_grad(o.matrix.args<A>(), data<T>(o.grad), data<T>(o.x), mutable_data<A>(out),
               o.x.size(1));
  });
  return out;
}

}  // namespace mmssl
