// Checks and unpacks the tensors of propagate_layers, and binds it to the kernels of either device.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/propagate/operands.h"
#include "ops/propagate_layers/layers.h"

namespace mmssl {

// The graph: rowptr (U + 1,), col (E,), t_rowptr (I + 1,), t_col (E,) index the same edges by user
// and by item; value (E,) is in the order of the users, t_edge (E,) maps positions by item to it.
// ui_row_scale and iu_col_scale are (U,), ui_col_scale and iu_row_scale (I,).
struct LayersOperands {
  // user (U, D) and item (I, D): the tables that the first hop reads. `transposed` multiplies by
  // the transposed matrices, which swaps the scales of both and leaves the index as it is.
  LayersOperands(bool transposed, const Tensor& user_, const Tensor& item_, const Tensor& rowptr,
                 const Tensor& col, const Tensor& t_rowptr, const Tensor& t_col,
                 const OptTensor& ui_row_scale, const OptTensor& ui_col_scale,
                 const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
                 const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale_)
      : user(as_contiguous(checked(user_, item_, rowptr, t_rowptr))),
        item(as_contiguous(item_)),
        ui(user, rowptr, col, transposed ? iu_col_scale : ui_row_scale,
           transposed ? iu_row_scale : ui_col_scale, value, std::nullopt, item.size(0)),
        iu(user, t_rowptr, t_col, transposed ? ui_col_scale : iu_row_scale,
           transposed ? ui_row_scale : iu_col_scale, value, t_edge, user.size(0)),
        count(num_layers),
        scale(scale_) {
    STD_TORCH_CHECK(num_layers >= 1, "mmssl::propagate_layers: num_layers must be at least 1");
    STD_TORCH_CHECK(ui.nnz() == iu.nnz(),
                    "mmssl::propagate_layers: col and t_col must be of one length");
  }

  void check_rowptr() const { ui.check_rowptr(), iu.check_rowptr(); }
  void report_bad_index() const { ui.report_bad_index(), iu.report_bad_index(); }

  template <class A>
  Layers<A> layers() const {
    return {ui.args<A>(), iu.args<A>(), user.size(1), count, A(scale)};
  }
  Tensor new_user() const { return empty_like(user); }
  Tensor new_item() const { return empty_like(item); }
  Tensor new_layers() const { return new_empty(user, {layers<float>().scratch()}); }
  Tensor new_sums() const {
    // A single hop adds to base and keeps no sum.
    return new_empty(user, {count > 1 ? layers<float>().size() : 0},
                     accumulation_type(user.scalar_type()));
  }
  // Another pair of tables of the same shapes and dtype.
  void check_pair(const Tensor& other_user, const Tensor& other_item) const {
    const ScalarType type = user.scalar_type();
    STD_TORCH_CHECK(matches(other_user, user, type, {user.size(0), user.size(1)}) &&
                        matches(other_item, user, type, {item.size(0), item.size(1)}),
                    "mmssl::propagate_layers: base_user and base_item must be like user and item");
  }

  Tensor user, item;
  MatrixOperands ui, iu;
  int64_t count;
  double scale;

 private:
  static const Tensor& checked(const Tensor& user, const Tensor& item, const Tensor& rowptr,
                               const Tensor& t_rowptr) {
    const ScalarType type = user.scalar_type();
    STD_TORCH_CHECK(
        rowptr.dim() == 1 && t_rowptr.dim() == 1 && user.dim() == 2 &&
            matches(user, user, type, {rowptr.size(0) - 1, kAny}) &&
            matches(item, user, type, {t_rowptr.size(0) - 1, user.size(1)}),
        "mmssl::propagate_layers: user must be (U, D) and item (I, D) of one dtype on one device");
    return user;
  }
};

template <class T>
Sides<const T> sides(const Tensor& user, const Tensor& item) {
  return {data<T>(user), data<T>(item)};
}
template <class T>
Sides<T> mutable_sides(const Tensor& user, const Tensor& item) {
  return {mutable_data<T>(user), mutable_data<T>(item)};
}

template <class Kernels>
std::tuple<Tensor, Tensor> propagate_layers(
    const Tensor& base_user, const Tensor& base_item, const Tensor& user, const Tensor& item,
    const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr, const Tensor& t_col,
    const OptTensor& ui_row_scale, const OptTensor& ui_col_scale, const OptTensor& iu_row_scale,
    const OptTensor& iu_col_scale, const OptTensor& value, const OptTensor& t_edge,
    int64_t num_layers, double scale) {
  const LayersOperands o(false, user, item, rowptr, col, t_rowptr, t_col, ui_row_scale,
                         ui_col_scale, iu_row_scale, iu_col_scale, value, t_edge, num_layers,
                         scale);
  o.check_pair(base_user, base_item);
  const Kernels kernels(o);
  const Tensor first = as_contiguous(base_user), second = as_contiguous(base_item);
  const Tensor layers = o.new_layers(), sums = o.new_sums();
  const Tensor out_user = o.new_user(), out_item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    run_layers(o.layers<A>(), sides<T>(first, second), sides<T>(o.user, o.item),
               mutable_sides<T>(out_user, out_item), mutable_data<T>(layers),
               mutable_data<A>(sums), kernels);
  });
  return {out_user, out_item};
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> propagate_layers_backward(
    const Tensor& grad_user, const Tensor& grad_item, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(true, grad_user, grad_item, rowptr, col, t_rowptr, t_col, ui_row_scale,
                         ui_col_scale, iu_row_scale, iu_col_scale, value, t_edge, num_layers,
                         scale);
  const Kernels kernels(o);
  const Tensor layers = o.new_layers();
  const Tensor base_user = o.new_user(), base_item = o.new_item();
  const Tensor user = o.new_user(), item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Layers<A> m = o.layers<A>();
    const Sides<T> g = mutable_sides<T>(base_user, base_item);
    kernels.scaled(data<T>(o.user), g.user, m.ui.rows * m.d, m.scale);
    kernels.scaled(data<T>(o.item), g.item, m.iu.rows * m.d, m.scale);
    run_layers_backward(m, Sides<const T>{g.user, g.item}, mutable_sides<T>(user, item),
                        mutable_data<T>(layers), kernels);
  });
  return {base_user, base_item, user, item};
}

}  // namespace mmssl
