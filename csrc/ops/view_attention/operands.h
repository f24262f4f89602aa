// Checks and unpacks the tensors of view_attention, and binds it to the kernels of either device.
// Shapes and formula: view_attention.h.
#pragma once
#include <tuple>

#include "common/torch.h"
#include "ops/view_attention/view_attention.h"

namespace mmssl {

struct ViewAttentionOperands {
  ViewAttentionOperands(const Tensor& query_, const Tensor& key_, const Tensor& view_,
                        int64_t heads)
      : view(as_contiguous(view_)), type(view.scalar_type()) {
    STD_TORCH_CHECK(view.dim() == 3 && is_supported(type),
                    "mmssl::view_attention: view must be (M, N, D) float32, float64 or bfloat16");
    STD_TORCH_CHECK(heads >= 1 && view.size(2) % heads == 0,
                    "mmssl::view_attention: num_heads must divide D = ", view.size(2));
    size = {view.size(0), view.size(1), view.size(2), heads};
    query = like_view(query_, "query"), key = like_view(key_, "key");
  }

  Tensor new_out() const { return new_empty(view, {size.nodes, size.heads * size.dim}); }

  Tensor query, key, view;
  ScalarType type;
  ViewAttentionSize size;

 private:
  Tensor like_view(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, view, type, {size.views, size.nodes, size.dim}),
                    "mmssl::view_attention: ", what,
                    " must be of the shape and dtype and on the device of view");
    return as_contiguous(t);
  }
};

// The same for the backward, with its empty results.
struct ViewAttentionGradOperands : ViewAttentionOperands {
  ViewAttentionGradOperands(const Tensor& grad_, const Tensor& query_, const Tensor& key_,
                            const Tensor& view_, int64_t heads)
      : ViewAttentionOperands(query_, key_, view_, heads),
        grad(as_contiguous(grad_)),
        grad_query(empty_like(query)),
        grad_key(empty_like(key)),
        grad_view(empty_like(view)) {
    STD_TORCH_CHECK(matches(grad, view, type, {size.nodes, heads * size.dim}),
                    "mmssl::view_attention: grad must be (N, H D)");
  }

  Tensor grad, grad_query, grad_key, grad_view;
};

template <class Kernels>
Tensor view_attention(const Tensor& query, const Tensor& key, const Tensor& view, int64_t heads) {
  const ViewAttentionOperands o(query, key, view, heads);
  const Tensor out = o.new_out();
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    kernels.template forward<T, decltype(sum)>(o.size, data<T>(o.query), data<T>(o.key),
                                               data<T>(o.view), mutable_data<T>(out));
  });
  return out;
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> view_attention_backward(const Tensor& grad,
                                                           const Tensor& query, const Tensor& key,
                                                           const Tensor& view, int64_t heads) {
  const ViewAttentionGradOperands o(grad, query, key, view, heads);
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    kernels.template backward<T, decltype(sum)>(
        o.size, data<T>(o.grad), data<T>(o.query), data<T>(o.key), data<T>(o.view),
        mutable_data<T>(o.grad_query), mutable_data<T>(o.grad_key), mutable_data<T>(o.grad_view));
  });
  return {o.grad_query, o.grad_key, o.grad_view};
}

}  // namespace mmssl
