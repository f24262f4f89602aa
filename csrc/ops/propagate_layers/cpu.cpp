// Schemas of propagate_layers and its gradient, bound to the CPU kernels of propagate.
#include <tuple>

#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

// Runs a batch of products on torch's threads.
constexpr auto kLaunch = [](auto products) { return cpu::spmm(products, torch_threads()); };

void check_index(bool good, const LayersOperands& o) {
  if (good) return;
  o.report_bad_index();
  STD_TORCH_CHECK(false, "mmssl::propagate_layers: the index changed during the call");
}

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
  o.check_rowptr();
  const Tensor first = as_contiguous(base_user), second = as_contiguous(base_item);
  const Tensor layers = o.new_layers(), sums = o.new_sums();
  Tensor out_user = o.new_user(), out_item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    check_index(run_layers(o.layers<A>(), sides<T>(first, second),
                                        sides<T>(o.user, o.item),
                                        mutable_sides<T>(out_user, out_item),
                                        mutable_data<T>(layers), mutable_data<A>(sums), kLaunch),
                o);
  });
  return {out_user, out_item};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> propagate_layers_backward(
    const Tensor& grad_user, const Tensor& grad_item, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(true, grad_user, grad_item, rowptr, col, t_rowptr, t_col, ui_row_scale,
                         ui_col_scale, iu_row_scale, iu_col_scale, value, t_edge, num_layers,
                         scale);
  o.check_rowptr();
  const Tensor layers = o.new_layers();
  Tensor base_user = o.new_user(), base_item = o.new_item();
  Tensor user = o.new_user(), item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Layers<A> m = o.layers<A>();
    const Sides<T> g = mutable_sides<T>(base_user, base_item);
    cpu::scaled(data<T>(o.user), g.user, m.ui.rows * m.d, m.scale, torch_threads());
    cpu::scaled(data<T>(o.item), g.item, m.iu.rows * m.d, m.scale, torch_threads());
    check_index(run_layers_backward(m, Sides<const T>{g.user, g.item},
                                                 mutable_sides<T>(user, item),
                                                 mutable_data<T>(layers), kLaunch),
                o);
  });
  return {base_user, base_item, user, item};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "propagate_layers(Tensor base_user, Tensor base_item, Tensor user, Tensor item, "
      "Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, Tensor? ui_row_scale, "
      "Tensor? ui_col_scale, Tensor? iu_row_scale, Tensor? iu_col_scale, Tensor? value, "
      "Tensor? t_edge, int num_layers, float scale) -> (Tensor, Tensor)");
  m.def(
      "propagate_layers_backward(Tensor grad_user, Tensor grad_item, Tensor rowptr, Tensor col, "
      "Tensor t_rowptr, Tensor t_col, Tensor? ui_row_scale, Tensor? ui_col_scale, "
      "Tensor? iu_row_scale, Tensor? iu_col_scale, Tensor? value, Tensor? t_edge, int num_layers, "
      "float scale) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers));
  m.impl("propagate_layers_backward", TORCH_BOX(&propagate_layers_backward));
}
