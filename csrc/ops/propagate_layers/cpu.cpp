// Schemas of propagate_layers and its gradient, bound to the CPU kernels of propagate.
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const LayersOperands& o) : o_(o) { o.check_rowptr(); }

  template <class T, class A>
  void operator()(std::span<const SparseProduct<T, A>> products) const {
    if (cpu::spmm(products, torch_threads())) return;
    o_.report_bad_index();
    STD_TORCH_CHECK(false, "mmssl::propagate_layers: the index changed during the call");
  }

  template <class T, class A>
  void scaled(const T* x, T* y, int64_t n, A factor) const {
    cpu::scaled(x, y, n, factor, torch_threads());
  }

 private:
  const LayersOperands& o_;
};

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
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers<Kernels>));
  m.impl("propagate_layers_backward", TORCH_BOX(&propagate_layers_backward<Kernels>));
}
