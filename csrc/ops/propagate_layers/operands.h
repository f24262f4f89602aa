// Checks and unpacks the tensors of propagate_layers, and binds it to the kernels of either device.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/propagate/operands.h"
#include "ops/propagate_layers/layers.h"

namespace mmssl {

// The graph: rowptr (U + 1,), col (E,), t_rowptr (I + 1,), t_col (E,) index the same edges by user
// and by item; value (E,) is in the order of the users, t_edge (E,) maps positions by item to it.
// ui_row_scale and iu_col_scale are (U,), ui_col_scale and iu_row_scale (I,), all of the dtype and
// on the device of `table`, which has D columns.
struct GraphOperands {
  GraphOperands(const Tensor& table, const Tensor& rowptr, const Tensor& col,
                const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
                const OptTensor& ui_col_scale, const OptTensor& iu_row_scale,
                const OptTensor& iu_col_scale, const OptTensor& value, const OptTensor& t_edge,
                int64_t num_layers, double scale_)
      : ui(table, rowptr, col, ui_row_scale, ui_col_scale, value, std::nullopt,
           t_rowptr.size(0) - 1),
        iu(table, t_rowptr, t_col, iu_row_scale, iu_col_scale, value, t_edge, rowptr.size(0) - 1),
        width(table.size(1)),
        count(num_layers),
        scale(scale_) {
    STD_TORCH_CHECK(num_layers >= 1, "mmssl::propagate_layers: num_layers must be at least 1");
    STD_TORCH_CHECK(ui.nnz() == iu.nnz(),
                    "mmssl::propagate_layers: col and t_col must be of one length");
  }

  void check_rowptr() const { ui.check_rowptr(), iu.check_rowptr(); }
  // For kernels that returned false.
  [[noreturn]] void report_bad_index() const {
    ui.report_bad_index(), iu.report_bad_index();
    STD_TORCH_CHECK(false, "mmssl::propagate_layers: the index changed during the call");
    __builtin_unreachable();
  }

  template <class A>
  Layers<A> layers() const {
    return {ui.args<A>(), iu.args<A>(), width, count, A(scale)};
  }

  MatrixOperands ui, iu;
  int64_t width, count;  // D, L
  double scale;
};

// A table of each side: users (rows of users, D) and items (rows of items, D).
struct TableOperands {
  TableOperands(const Tensor& user_, const Tensor& item_, int64_t users, int64_t items)
      : user(as_contiguous(user_)), item(as_contiguous(item_)) {
    const ScalarType type = user.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "mmssl::propagate_layers: user must be float32 or float64");
    STD_TORCH_CHECK(
        user.dim() == 2 && matches(user, user, type, {users, kAny}) &&
            matches(item, user, type, {items, user.size(1)}),
        "mmssl::propagate_layers: user must be (U, D) and item (I, D) of one dtype on one device");
  }

  template <class A>
  Sides<const A> sides() const {
    return {data<A>(user), data<A>(item), user.size(1)};
  }

  Tensor user, item;
};

// The number of rows that belong to an index; no size of a tensor if it is none.
inline int64_t rows_of(const Tensor& rowptr) {
  return rowptr.dim() == 1 && rowptr.size(0) > 0 ? rowptr.size(0) - 1 : -2;
}

struct LayersOperands : TableOperands, GraphOperands {
  template <class... Rest>
  LayersOperands(const Tensor& user, const Tensor& item, const Tensor& rowptr, const Tensor& col,
                 const Tensor& t_rowptr, const Rest&... rest)
      : TableOperands(user, item, rows_of(rowptr), rows_of(t_rowptr)),
        GraphOperands(TableOperands::user, rowptr, col, t_rowptr, rest...) {}
};

// Calls f(number) with a zero of the dtype of the tables.
template <class F>
void for_table_dtype(const Tensor& table, const F& f) {
  if (table.scalar_type() == ScalarType::Double) {
    f(double());
  } else {
    f(float());
  }
}

template <class Kernels>
std::tuple<Tensor, Tensor> propagate_layers(
    const Tensor& user, const Tensor& item, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  const Kernels kernels(o);
  const Tensor scratch = new_empty(o.user, {Kernels::scratch(o.layers<float>())});
  const Tensor out_user = empty_like(o.user), out_item = empty_like(o.item);
  for_table_dtype(o.user, [&](auto number) {
    using A = decltype(number);
    const Layers<A> m = o.layers<A>();
    kernels(m, o.sides<A>(), Sides<A>{mutable_data<A>(out_user), mutable_data<A>(out_item), m.d},
            mutable_data<A>(scratch));
  });
  return {out_user, out_item};
}

}  // namespace mmssl
