// mmssl._C: the schemas of the ops and their CPU kernels (ops_*.cpp hold more of them), bound through
// torch's stable ABI, so that one build serves every Python and every torch from 2.11 on. Fakes and
// autograd live in Python.
#include <Python.h>

#include <span>
#include <string>

#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/check_index.h"
#include "cpu/simd.h"
#include "cpu/spmm.h"

namespace {

using mmssl::Batch;
using mmssl::OptTensor;
using mmssl::OptTensors;
using mmssl::Tensor;
using mmssl::Tensors;
using mmssl::torch_threads;
using mmssl::View;

// The kernels look at col and edge themselves, at every call, since the arrays are the caller's.
void check_rowptr(const View& view) {
  STD_TORCH_CHECK(mmssl::cpu::rises_from_zero(view.rowptr(), view.rows(), view.nnz(),
                                              torch_threads()),
                  "mmssl::spmm: rowptr must rise from 0 to the number of edges, ", view.nnz());
}

// Says which of them it was; an array that another thread has put right by now is no excuse.
void check_index(const View& view) {
  const mmssl::Parallel pool = torch_threads();
  STD_TORCH_CHECK(mmssl::cpu::ids_in_range(view.col(), view.nnz(), view.columns(), pool),
                  "mmssl::spmm: col must lie in [0, ", view.columns(), ")");
  STD_TORCH_CHECK(view.edge() == nullptr ||
                      mmssl::cpu::ids_in_range(view.edge(), view.nnz(), view.nnz(), pool),
                  "mmssl::spmm: edge must lie in [0, ", view.nnz(), ")");
}

Tensors propagate(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                  const Tensors& t_rowptr, const Tensors& t_col, const OptTensors& row_scale,
                  const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                  const OptTensors& t_edge) {
  const Batch batch(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge);
  if (batch.x.empty()) return {};
  for (const View& view : batch.view) check_rowptr(view);
  mmssl::for_dtype(batch.x[0].scalar_type(), [&](auto storage, auto sum) {
    const auto products = batch.products<decltype(storage), decltype(sum)>();
    if (mmssl::cpu::spmm(std::span(products), torch_threads())) return;
    for (const View& view : batch.view) check_index(view);
    STD_TORCH_CHECK(false, "mmssl::spmm: col or edge changed during the call");
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
  check_rowptr(o.view);
  Tensor out = o.new_out();
  mmssl::for_dtype(o.x.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const bool good = mmssl::cpu::spmm_value_grad(
        o.view.args<A>(), mmssl::data<T>(o.grad), mmssl::data<T>(o.x),
        mmssl::mutable_data<A>(out), o.x.size(1), torch_threads());
    if (good) return;
    check_index(o.view);
    STD_TORCH_CHECK(false, "mmssl::spmm: col or edge changed during the call");
  });
  return out;
}

std::string cpu_capability() { return mmssl::cpu::simd_level_name(); }

}  // namespace

STABLE_TORCH_LIBRARY(mmssl, m) {
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
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad));
  m.impl("propagate", TORCH_BOX(&propagate));
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr,               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
