// Schemas of spmm, its value gradient and propagate (a batch of spmm), bound to the CPU kernels.
#include "ops/propagate/operands.h"

namespace {

using namespace mmssl;

Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors&, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors&) {
  const PropagateOperands o(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  if (o.x.empty()) return {};
  for (const MatrixOperands& matrix : o.matrix) matrix.check_rowptr();
  for_dtype(o.x[0].scalar_type(), [&](auto storage, auto sum) {
    const auto products = o.args<decltype(storage), decltype(sum)>();
    if (cpu::spmm(std::span(products), torch_threads())) return;
    for (const MatrixOperands& matrix : o.matrix) matrix.report_bad_index();
    STD_TORCH_CHECK(false, "mmssl::spmm: col or edge changed during the call");
  });
  return o.y;
}

Tensor spmm_value_grad(const Tensor& grad, const Tensor& x, const Tensor& rowptr,
                       const Tensor& col, const Tensor& t_rowptr, const Tensor&,
                       const OptTensor& row_scale, const OptTensor& col_scale,
                       const OptTensor& edge, const OptTensor&) {
  const ValueGradOperands o(grad, x, rowptr, col, t_rowptr, row_scale, col_scale, edge);
  o.matrix.check_rowptr();
  Tensor out = o.new_out();
  for_dtype(o.x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    if (cpu::spmm_value_grad(o.matrix.args<A>(), data<T>(o.grad), data<T>(o.x),
                             mutable_data<A>(out), o.x.size(1), torch_threads())) {
      return;
    }
    o.matrix.report_bad_index();
    STD_TORCH_CHECK(false, "mmssl::spmm: col or edge changed during the call");
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "spmm(Tensor x, Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, Tensor? row_scale, "
      "Tensor? col_scale, Tensor? value, Tensor? edge, Tensor? t_edge) -> Tensor");
  m.def(
      "spmm_value_grad(Tensor grad, Tensor x, Tensor rowptr, Tensor col, Tensor t_rowptr, "
      "Tensor t_col, Tensor? row_scale, Tensor? col_scale, Tensor? edge, Tensor? t_edge) -> Tensor");
  m.def(
      "propagate(Tensor[] x, Tensor[] rowptr, Tensor[] col, Tensor[] t_rowptr, Tensor[] t_col, "
      "Tensor?[] row_scale, Tensor?[] col_scale, Tensor?[] value, Tensor?[] edge, "
      "Tensor?[] t_edge) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("spmm", TORCH_BOX(&single_product<propagate>));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad));
  m.impl("propagate", TORCH_BOX(&propagate));
}
