// mmssl._C_cuda: the CUDA kernels of the ops whose schemas mmssl._C defines. Torch's stable ABI.
#include <Python.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <span>

#include "common/stable_args.h"
#include "cuda/spmm.cuh"

namespace {

using mmssl::Batch;
using mmssl::OptTensor;
using mmssl::OptTensors;
using mmssl::Tensor;
using mmssl::Tensors;
using mmssl::View;

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors& t_col, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors& t_edge) {
  const torch::stable::accelerator::DeviceGuard guard(x[0].get_device_index());
  const cudaStream_t stream = current_stream(x[0].get_device_index());
  const Batch batch(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  int64_t sums = 0;
  for (size_t n = 0; n < batch.x.size(); ++n) {
    sums += mmssl::cuda::spmm_scratch_rows(batch.view[n].nnz()) * batch.x[n].size(1);
  }
  const Tensor scratch = torch::stable::new_empty(
      batch.x[0], {sums}, mmssl::accumulation_type(batch.x[0].scalar_type()));
  mmssl::for_dtype(batch.x[0].scalar_type(), [&](auto storage, auto sum) {
    using A = decltype(sum);
    const auto products = batch.products<decltype(storage), A>();
    STD_CUDA_CHECK(mmssl::cuda::launch_spmm(std::span(products), mmssl::mutable_data<A>(scratch),
                                            stream));
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
  STD_TORCH_CHECK(x_.dim() == 2 && x_.size(0) == t_rowptr.size(0) - 1 && grad_.dim() == 2 &&
                      grad_.size(0) == rowptr.size(0) - 1 && grad_.size(1) == x_.size(1) &&
                      grad_.scalar_type() == x_.scalar_type(),
                  "mmssl::spmm_value_grad: grad must be (R, D) and x (C, D) of one dtype");
  const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
  const cudaStream_t stream = current_stream(x_.get_device_index());
  const Tensor x = mmssl::as_contiguous(x_), grad = mmssl::as_contiguous(grad_);
  const View view(x, rowptr, col, row_scale, col_scale, std::nullopt, edge, x.size(0));
  Tensor out = torch::stable::new_empty(x, {view.nnz()},
                                        mmssl::accumulation_type(x.scalar_type()));
  mmssl::for_dtype(x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    STD_CUDA_CHECK(mmssl::cuda::launch_spmm_value_grad(view.args<A>(), mmssl::data<T>(grad),
                                                       mmssl::data<T>(x),
                                                       mmssl::mutable_data<A>(out), x.size(1),
                                                       stream));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmssl, CUDA, m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad));
  m.impl("propagate", TORCH_BOX(&propagate));
}

PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr,
                               nullptr,               nullptr,   nullptr, nullptr};
  return PyModule_Create(&module);
}
