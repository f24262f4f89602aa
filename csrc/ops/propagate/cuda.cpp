// Binds spmm, its value gradient and propagate to their CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/propagate/kernels.cuh"
#include "ops/propagate/operands.h"

namespace {

using namespace mmssl;

Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors&, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors&) {
  const PropagateOperands o(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  if (o.x.empty()) return {};
  const cuda::CurrentDevice device(o.x[0]);
  int64_t sums = 0;
  for (size_t n = 0; n < o.x.size(); ++n) {
    sums += cuda::spmm_scratch_rows(o.matrix[n].nnz()) * o.x[n].size(1);
  }
  const Tensor scratch = new_empty(o.x[0], {sums}, accumulation_type(o.x[0].scalar_type()));
  for_dtype(o.x[0].scalar_type(), [&](auto storage, auto sum) {
    using A = decltype(sum);
    const auto products = o.args<decltype(storage), A>();
    MMSSL_CUDA_CHECK(
        cuda::launch_spmm(std::span(products), mutable_data<A>(scratch), device.stream));
  });
  return o.y;
}

Tensor spmm_value_grad(const Tensor& grad, const Tensor& x, const Tensor& rowptr,
                       const Tensor& col, const Tensor& t_rowptr, const Tensor&,
                       const OptTensor& row_scale, const OptTensor& col_scale,
                       const OptTensor& edge, const OptTensor&) {
  const ValueGradOperands o(grad, x, rowptr, col, t_rowptr, row_scale, col_scale, edge);
  const cuda::CurrentDevice device(o.x);
  Tensor out = o.new_out();
  for_dtype(o.x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    MMSSL_CUDA_CHECK(cuda::launch_spmm_value_grad(o.matrix.args<A>(), data<T>(o.grad),
                                                  data<T>(o.x), mutable_data<A>(out), o.x.size(1),
                                                  device.stream));
  });
  return out;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("spmm", TORCH_BOX(&single_product<propagate>));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad));
  m.impl("propagate", TORCH_BOX(&propagate));
}
