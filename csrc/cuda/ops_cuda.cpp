// mmssl._C_cuda: the CUDA kernels of the ops whose schemas mmssl._C defines. Torch's stable ABI.
#include <Python.h>

#include <span>

#include "common/cuda_binding.h"
#include "cuda/spmm.cuh"

namespace {

using mmssl::Batch;
using mmssl::OptTensor;
using mmssl::OptTensors;
using mmssl::Tensor;
using mmssl::Tensors;

Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors& t_col, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors& t_edge) {
  const Batch batch(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  if (batch.x.empty()) return {};
  const mmssl::cuda::CurrentDevice device(batch.x[0]);
  int64_t sums = 0;
  for (size_t n = 0; n < batch.x.size(); ++n) {
    sums += mmssl::cuda::spmm_scratch_rows(batch.view[n].nnz()) * batch.x[n].size(1);
  }
  const Tensor scratch = torch::stable::new_empty(
      batch.x[0], {sums}, mmssl::accumulation_type(batch.x[0].scalar_type()));
  mmssl::for_dtype(batch.x[0].scalar_type(), [&](auto storage, auto sum) {
    using A = decltype(sum);
    const auto products = batch.products<decltype(storage), A>();
    MMSSL_CUDA_CHECK(mmssl::cuda::launch_spmm(std::span(products), mmssl::mutable_data<A>(scratch),
                                              device.stream));
  });
  return batch.y;
}

Tensor spmm(const Tensor& x, const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr,
            const Tensor& t_col, const OptTensor& row_scale, const OptTensor& col_scale,
            const OptTensor& value, const OptTensor& edge, const OptTensor& t_edge) {
  return propagate({x}, {rowptr}, {col}, {t_rowptr}, {t_col}, {row_scale}, {col_scale}, {value},
                   {edge}, {t_edge})[0];
}

Tensor spmm_value_grad(const Tensor& grad_, const Tensor& x_, const Tensor& rowptr,
                       const Tensor& col, const Tensor& t_rowptr, const Tensor& t_col,
                       const OptTensor& row_scale, const OptTensor& col_scale,
                       const OptTensor& edge, const OptTensor& t_edge) {
  const mmssl::ValueGradOperands o(grad_, x_, rowptr, col, t_rowptr, row_scale, col_scale, edge);
  const mmssl::cuda::CurrentDevice device(o.x);
  Tensor out = o.new_out();
  mmssl::for_dtype(o.x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    MMSSL_CUDA_CHECK(mmssl::cuda::launch_spmm_value_grad(
        o.view.args<A>(), mmssl::data<T>(o.grad), mmssl::data<T>(o.x),
        mmssl::mutable_data<A>(out), o.x.size(1), device.stream));
  });
  return out;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad));
  m.impl("propagate", TORCH_BOX(&propagate));
}

PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr,
                               nullptr,               nullptr,   nullptr, nullptr};
  return PyModule_Create(&module);
}
