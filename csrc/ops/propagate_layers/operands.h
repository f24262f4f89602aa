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
  LayersOperands(const Tensor& user_, const Tensor& item_, const Tensor& rowptr, const Tensor& col,
                 const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
                 const OptTensor& ui_col_scale, const OptTensor& iu_row_scale,
                 const OptTensor& iu_col_scale, const OptTensor& value, const OptTensor& t_edge,
                 int64_t num_layers, double scale_)
      : user(as_contiguous(checked(user_, item_, rowptr, t_rowptr))),
        item(as_contiguous(item_)),
        ui(user, rowptr, col, ui_row_scale, ui_col_scale, value, std::nullopt, item.size(0)),
        iu(user, t_rowptr, t_col, iu_row_scale, iu_col_scale, value, t_edge, user.size(0)),
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

  Tensor user, item;
  MatrixOperands ui, iu;
  int64_t count;
  double scale;

 private:
  static const Tensor& checked(const Tensor& user, const Tensor& item, const Tensor& rowptr,
                               const Tensor& t_rowptr) {
    const ScalarType type = user.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "mmssl::propagate_layers: user must be float32 or float64");
    STD_TORCH_CHECK(
        rowptr.dim() == 1 && t_rowptr.dim() == 1 && user.dim() == 2 &&
            matches(user, user, type, {rowptr.size(0) - 1, kAny}) &&
            matches(item, user, type, {t_rowptr.size(0) - 1, user.size(1)}),
        "mmssl::propagate_layers: user must be (U, D) and item (I, D) of one dtype on one device");
    return user;
  }
};

template <class Kernels>
std::tuple<Tensor, Tensor> propagate_layers(
    const Tensor& user, const Tensor& item, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  const Kernels kernels(o);
  const Tensor scratch = new_empty(o.user, {o.layers<float>().scratch()});
  const Tensor out_user = empty_like(o.user), out_item = empty_like(o.item);
  const auto run = [&](auto number) {
    using A = decltype(number);
    const Layers<A> m = o.layers<A>();
    kernels(m, Sides<const A>{data<A>(o.user), data<A>(o.item), m.d},
            Sides<A>{mutable_data<A>(out_user), mutable_data<A>(out_item), m.d},
            mutable_data<A>(scratch));
  };
  if (o.user.scalar_type() == ScalarType::Double) {
    run(double());
  } else {
    run(float());
  }
  return {out_user, out_item};
}

}  // namespace mmssl
