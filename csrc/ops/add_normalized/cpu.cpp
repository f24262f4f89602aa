// Schemas of add_normalized and its binding to the CPU kernel.
#include "ops/add_normalized/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const NormalizedOperands&) {}

  template <class T, class A>
  void forward(const NormalizedSize& size, const T* base, const T* x, A weight, T* out,
               A* inverse) const {
    cpu::add_normalized<T, A>(size, base, x, weight, out, inverse, torch_threads());
  }

  template <class T, class A>
  void backward(const NormalizedSize& size, const T* grad, const T* x, const A* inverse, A weight,
                T* grad_x) const {
    cpu::add_normalized_backward<T, A>(size, grad, x, inverse, weight, grad_x, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("add_normalized(Tensor base, Tensor x, float weight) -> (Tensor, Tensor)");
  m.def(
      "add_normalized_backward(Tensor grad, Tensor x, Tensor inverse, float weight) -> Tensor");
  // For a GPU; on the CPU the same numbers come from operators of torch.
  m.def(
      "normalized_tables(Tensor[] layers, Tensor[] x, float scale, float weight) -> "
      "(Tensor, Tensor)");
  m.def(
      "normalized_tables_backward(Tensor[] grad, Tensor[] x, Tensor inverse, Tensor?[] more, "
      "float weight) -> Tensor");
  m.def("offset_rows(Tensor x, Tensor? offset, float radius) -> Tensor");
  m.def("offset_rows_backward(Tensor grad, Tensor x, Tensor? offset, float radius) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("add_normalized", TORCH_BOX(&add_normalized<Kernels>));
  m.impl("add_normalized_backward", TORCH_BOX(&add_normalized_backward<Kernels>));
}
