// Schema of propagate_layers, bound to the CPU kernels of propagate.
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const LayersOperands& o) : o_(o) { o.check_rowptr(); }

  template <class A>
  void operator()(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch) const {
    if (cpu::propagate_layers(m, x, out, scratch, torch_threads())) return;
    o_.report_bad_index();
    STD_TORCH_CHECK(false, "mmssl::propagate_layers: the index changed during the call");
  }

 private:
  const LayersOperands& o_;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "propagate_layers(Tensor user, Tensor item, Tensor rowptr, Tensor col, Tensor t_rowptr, "
      "Tensor t_col, Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, "
      "Tensor? iu_col_scale, Tensor? value, Tensor? t_edge, int num_layers, float scale) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers<Kernels>));
}
