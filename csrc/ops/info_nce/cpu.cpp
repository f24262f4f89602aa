// Schemas of info_nce and its binding to the CPU kernel.
#include "ops/info_nce/info_nce.h"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const InfoNceOperands& o)
      : args_{o.pairs,
              o.n,
              o.m,
              o.k,
              o.d,
              data<int64_t>(o.target),
              o.options.in_batch,
              o.options.intra_view,
              o.options.symmetric,
              o.accumulation == ScalarType::Double ? *data<double>(o.temperature)
                                                   : double(*data<float>(o.temperature)),
              o.options.eps} {
    o.check_target();
  }

  template <class T, class A>
  void forward(const T* anchor, const T* positive, const T* negatives, A* loss,
               double* saved) const {
    cpu::info_nce_forward<T, A>(args_, anchor, positive, negatives, loss, saved, torch_threads());
  }

  template <class T, class A>
  void backward(const T* anchor, const T* positive, const T* negatives, const double* saved,
                const A* grad, T* grad_anchor, T* grad_positive, T* grad_negatives,
                A* grad_temperature) const {
    cpu::info_nce_backward<T, A>(args_, anchor, positive, negatives, saved, grad, grad_anchor,
                                 grad_positive, grad_negatives, grad_temperature, torch_threads());
  }

 private:
  cpu::InfoNceArgs args_;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "info_nce(Tensor anchor, Tensor positive, Tensor temperature, Tensor? negatives, "
      "bool intra_view, bool symmetric, float eps, bool tf32, Tensor? target=None, "
      "bool in_batch=True) -> (Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor temperature, "
      "Tensor? negatives, Tensor saved, bool intra_view, bool symmetric, float eps, bool tf32, "
      "Tensor? target=None, bool in_batch=True) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce<Kernels>));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward<Kernels>));
}
