// Checks and unpacks the tensors of spmm for either backend. The only header here that sees torch,
// and of torch only the stable ABI. Python has checked everything a user can get wrong; what is
// checked again is what would make a kernel read out of bounds.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "common/bf16.h"
#include "common/spmm_args.h"

namespace mmssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptTensors = std::vector<OptTensor>;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Itself where it is contiguous already: asked here, since torch's own op costs a trip through the
// dispatcher for every operand of every call.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// A kernel would follow the pointer of another device's memory.
inline bool on_device_of(const Tensor& x, const Tensor& t) {
  return x.is_cuda() == t.is_cuda() && x.is_cpu() == t.is_cpu() &&
         x.get_device_index() == t.get_device_index();
}

inline ScalarType accumulation_type(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensors of a view in contiguous form, kept alive while a kernel reads their pointers.
class View {
 public:
  View(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptTensor& row_scale,
       const OptTensor& col_scale, const OptTensor& value, const OptTensor& edge, int64_t columns)
      : rowptr_(rowptr), col_(col), columns_(columns) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "mmssl::spmm: x must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(rowptr.dim() == 1 && rowptr.size(0) >= 1 &&
                        rowptr.scalar_type() == ScalarType::Long,
                    "mmssl::spmm: rowptr must be (R + 1,) int64");
    STD_TORCH_CHECK(col.dim() == 1 && col.scalar_type() == ScalarType::Int,
                    "mmssl::spmm: col must be (E,) int32");
    STD_TORCH_CHECK(on_device_of(x, rowptr) && on_device_of(x, col),
                    "mmssl::spmm: rowptr and col must be on the device of x");
    rowptr_ = as_contiguous(rowptr);
    col_ = as_contiguous(col);
    const ScalarType acc = accumulation_type(type);
    row_scale_ = vector(x, row_scale, acc, rows(), "row_scale must be (R,)");
    col_scale_ = vector(x, col_scale, acc, columns, "col_scale must be (C,)");
    value_ = vector(x, value, acc, nnz(), "value must be (E,)");
    edge_ = vector(x, edge, ScalarType::Long, nnz(), "edge must be (E,)");
  }

  int64_t rows() const { return rowptr_.size(0) - 1; }
  int64_t nnz() const { return col_.size(0); }
  int64_t columns() const { return columns_; }
  const int64_t* rowptr() const { return data<int64_t>(rowptr_); }
  const int32_t* col() const { return data<int32_t>(col_); }
  const int64_t* edge() const { return ptr<int64_t>(edge_); }

  template <class A>
  SparseArgs<A> args() const {
    return {rows(),           nnz(),         data<int64_t>(rowptr_), data<int32_t>(col_),
            ptr<A>(row_scale_), ptr<A>(col_scale_), ptr<A>(value_), ptr<int64_t>(edge_), columns_};
  }

 private:
  static OptTensor vector(const Tensor& x, const OptTensor& t, ScalarType type, int64_t size,
                          const char* what) {
    if (!t.has_value()) return std::nullopt;
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == size && t->scalar_type() == type &&
                        on_device_of(x, *t),
                    "mmssl::spmm: ", what,
                    " of the type sums are kept in (edge: int64), on the device of x");
    return as_contiguous(*t);
  }
  template <class T>
  static const T* ptr(const OptTensor& t) {
    return t.has_value() ? data<T>(*t) : nullptr;
  }

  Tensor rowptr_, col_;
  int64_t columns_;
  OptTensor row_scale_, col_scale_, value_, edge_;
};

// The operands of a batch of products and its empty results. The lists are as long as x; entry n of
// each belongs to product n, and all x are of one dtype on one device.
struct Batch {
  Batch(const Tensors& x_, const Tensors& rowptr, const Tensors& col, const Tensors& t_rowptr,
        const OptTensors& row_scale, const OptTensors& col_scale, const OptTensors& value,
        const OptTensors& edge) {
    const size_t count = x_.size();
    STD_TORCH_CHECK(rowptr.size() == count && col.size() == count &&
                        t_rowptr.size() == count && row_scale.size() == count &&
                        col_scale.size() == count && value.size() == count && edge.size() == count,
                    "mmssl::propagate: lists must be as long as x, ", count);
    for (size_t n = 0; n < count; ++n) {
      STD_TORCH_CHECK(t_rowptr[n].dim() == 1 && t_rowptr[n].size(0) >= 1,
                      "mmssl::spmm: t_rowptr must be (C + 1,)");
      STD_TORCH_CHECK(x_[n].dim() == 2 && x_[n].size(0) == t_rowptr[n].size(0) - 1 &&
                          x_[n].scalar_type() == x_[0].scalar_type() && on_device_of(x_[0], x_[n]),
                      "mmssl::spmm: x must be (C, D) with C = ", t_rowptr[n].size(0) - 1,
                      ", of one dtype and on one device");
      x.push_back(as_contiguous(x_[n]));
      view.emplace_back(x[n], rowptr[n], col[n], row_scale[n], col_scale[n], value[n], edge[n],
                        x[n].size(0));
      y.push_back(torch::stable::new_empty(x[n], {view[n].rows(), x[n].size(1)}));
    }
  }

  template <class T, class A>
  std::vector<SparseProduct<T, A>> products() const {
    std::vector<SparseProduct<T, A>> out;
    for (size_t n = 0; n < x.size(); ++n) {
      out.push_back(
          {view[n].template args<A>(), data<T>(x[n]), mutable_data<T>(y[n]), x[n].size(1)});
    }
    return out;
  }

  Tensors x, y;  // (C, D) and (R, D) each
  std::vector<View> view;
};

// The operands of the gradient for the values of one product: grad (R, D), x (C, D).
struct ValueGradOperands {
  ValueGradOperands(const Tensor& grad_, const Tensor& x_, const Tensor& rowptr, const Tensor& col,
                    const Tensor& t_rowptr, const OptTensor& row_scale, const OptTensor& col_scale,
                    const OptTensor& edge)
      : grad(as_contiguous(checked(grad_, x_, rowptr, t_rowptr))),
        x(as_contiguous(x_)),
        view(x, rowptr, col, row_scale, col_scale, std::nullopt, edge, x.size(0)) {}

  Tensor new_out() const {
    return torch::stable::new_empty(x, {view.nnz()}, accumulation_type(x.scalar_type()));
  }

  Tensor grad, x;
  View view;

 private:
  static const Tensor& checked(const Tensor& grad, const Tensor& x, const Tensor& rowptr,
                               const Tensor& t_rowptr) {
    STD_TORCH_CHECK(
        t_rowptr.dim() == 1 && rowptr.dim() == 1 && x.dim() == 2 && grad.dim() == 2 &&
            x.size(0) == t_rowptr.size(0) - 1 && grad.size(0) == rowptr.size(0) - 1 &&
            grad.size(1) == x.size(1) && grad.scalar_type() == x.scalar_type() &&
            on_device_of(x, grad),
        "mmssl::spmm_value_grad: grad must be (R, D) and x (C, D) of one dtype on one device");
    return grad;
  }
};

// Calls f(storage value, sum value) with zeros of the two types that belong to a dtype.
template <class F>
void for_dtype(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    default:
      return f(bf16{}, float{});
  }
}

}  // namespace mmssl
