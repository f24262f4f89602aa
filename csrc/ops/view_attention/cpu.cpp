// Schemas of view_attention and its binding to the CPU kernel.
#include <tuple>

#include "ops/view_attention/operands.h"

namespace {

using namespace mmssl;

Tensor view_attention(const Tensor& query, const Tensor& key, const Tensor& view, int64_t heads) {
  const ViewAttentionOperands o(query, key, view, heads);
  Tensor out = o.new_out();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    cpu::view_attention<T, decltype(sum)>(o.size, data<T>(o.query), data<T>(o.key),
                                          data<T>(o.view), mutable_data<T>(out), torch_threads());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> view_attention_backward(const Tensor& grad,
                                                           const Tensor& query, const Tensor& key,
                                                           const Tensor& view, int64_t heads) {
  const ViewAttentionGradOperands o(grad, query, key, view, heads);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    cpu::view_attention_backward<T, decltype(sum)>(
        o.size, data<T>(o.grad), data<T>(o.query), data<T>(o.key), data<T>(o.view),
        mutable_data<T>(o.grad_query), mutable_data<T>(o.grad_key), mutable_data<T>(o.grad_view),
        torch_threads());
  });
  return {o.grad_query, o.grad_key, o.grad_view};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("view_attention(Tensor query, Tensor key, Tensor view, int num_heads) -> Tensor");
  m.def(
      "view_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor view, int num_heads) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("view_attention", TORCH_BOX(&view_attention));
  m.impl("view_attention_backward", TORCH_BOX(&view_attention_backward));
}
