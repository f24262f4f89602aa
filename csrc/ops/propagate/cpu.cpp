// Schemas of spmm, its value gradient and propagate (a batch of spmm), bound to the CPU kernels.
#include "ops/propagate/operands.h"

namespace {

using namespace mmssl;

void report_changed_index() {
  STD_TORCH_CHECK(false, "mmssl::spmm: col or edge changed during the call");
}

class Products {
 public:
  explicit Products(const PropagateOperands& o) : o_(o) {
    for (const MatrixOperands& matrix : o.matrix) matrix.check_rowptr();
  }

  template <class T, class A>
  void operator()(std::span<const SparseProduct<T, A>> products) const {
    if (cpu::spmm(products, torch_threads())) return;
    for (const MatrixOperands& matrix : o_.matrix) matrix.report_bad_index();
    report_changed_index();
  }

 private:
  const PropagateOperands& o_;
};

class ValueGrad {
 public:
  explicit ValueGrad(const ValueGradOperands& o) : o_(o) { o.matrix.check_rowptr(); }

  template <class T, class A>
  void operator()(const SparseArgs<A>& a, const T* g, const T* x, A* out, int64_t d) const {
    if (cpu::spmm_value_grad(a, g, x, out, d, torch_threads())) return;
    o_.matrix.report_bad_index();
    report_changed_index();
  }

 private:
  const ValueGradOperands& o_;
};

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
  // For a GPU: products of one width, one below the other; scale * (base + view @ x).
  m.def(
      "propagate_packed(Tensor[] x, Tensor[] rowptr, Tensor[] col, Tensor[] t_rowptr, Tensor[] t_col, "
      "Tensor?[] row_scale, Tensor?[] col_scale, Tensor?[] value, Tensor?[] edge, "
      "Tensor?[] t_edge) -> Tensor");
  m.def(
      "spmm_added(Tensor x, Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, "
      "Tensor? row_scale, Tensor? col_scale, Tensor? value, Tensor? edge, Tensor? t_edge, Tensor base, "
      "float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("spmm", TORCH_BOX(&spmm<Products>));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad<ValueGrad>));
  m.impl("propagate", TORCH_BOX(&propagate<Products>));
}
