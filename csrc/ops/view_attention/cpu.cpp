// Schemas of view_attention and its binding to the CPU kernel.
#include "ops/view_attention/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const ViewAttentionOperands&) {}

  template <class T, class A>
  void forward(const ViewAttentionSize& size, const T* query, const T* key, const T* view,
               T* out) const {
    cpu::view_attention<T, A>(size, query, key, view, out, torch_threads());
  }

  template <class T, class A>
  void backward(const ViewAttentionSize& size, const T* grad, const T* query, const T* key,
                const T* view, T* grad_query, T* grad_key, T* grad_view) const {
    cpu::view_attention_backward<T, A>(size, grad, query, key, view, grad_query, grad_key,
                                       grad_view, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("view_attention(Tensor query, Tensor key, Tensor view, int num_heads) -> Tensor");
  m.def(
      "view_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor view, int num_heads) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("view_attention", TORCH_BOX(&view_attention<Kernels>));
  m.impl("view_attention_backward", TORCH_BOX(&view_attention_backward<Kernels>));
}
