// Binds propagate_layers and its gradient to the CUDA kernels of propagate.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/propagate_layers/kernels.cuh"
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

// Launches the products of a hop; their scratch is that of the hop before, since they follow it on
// the stream.
template <class T, class A>
auto launcher(const Tensor& scratch, const cuda::CurrentDevice& device) {
  return [&](std::span<const SparseProduct<T, A>> products) {
    MMSSL_CUDA_CHECK(cuda::launch_spmm(products, mutable_data<A>(scratch), device.stream));
    return true;  // the index is not checked on a GPU
  };
}

Tensor new_hop_scratch(const LayersOperands& o) {
  return new_empty(o.user, {cuda::hop_scratch(o.layers<float>())},
                   accumulation_type(o.user.scalar_type()));
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
  const cuda::CurrentDevice device(o.user);
  const Tensor scratch = new_hop_scratch(o);
  const Tensor first = as_contiguous(base_user), second = as_contiguous(base_item);
  const Tensor layers = o.new_layers(), sums = o.new_sums();
  Tensor out_user = o.new_user(), out_item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    run_layers(o.layers<A>(), sides<T>(first, second), sides<T>(o.user, o.item),
                            mutable_sides<T>(out_user, out_item), mutable_data<T>(layers),
                            mutable_data<A>(sums), launcher<T, A>(scratch, device));
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
  const cuda::CurrentDevice device(o.user);
  const Tensor scratch = new_hop_scratch(o);
  const Tensor layers = o.new_layers();
  Tensor base_user = o.new_user(), base_item = o.new_item();
  Tensor user = o.new_user(), item = o.new_item();
  for_dtype(o.user.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Layers<A> m = o.layers<A>();
    const Sides<T> g = mutable_sides<T>(base_user, base_item);
    MMSSL_CUDA_CHECK(cuda::launch_scaled(data<T>(o.user), g.user, m.ui.rows * m.d, m.scale,
                                         device.stream));
    MMSSL_CUDA_CHECK(cuda::launch_scaled(data<T>(o.item), g.item, m.iu.rows * m.d, m.scale,
                                         device.stream));
    run_layers_backward(m, Sides<const T>{g.user, g.item},
                                     mutable_sides<T>(user, item), mutable_data<T>(layers),
                                     launcher<T, A>(scratch, device));
  });
  return {base_user, base_item, user, item};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers));
  m.impl("propagate_layers_backward", TORCH_BOX(&propagate_layers_backward));
}
