// Schemas of view_attention and its binding to the CPU kernel. Formulas and shapes:
// csrc/cpu/view_attention.h.
#include <tuple>

#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/view_attention.h"

namespace {

using mmssl::data;
using mmssl::mutable_data;
using mmssl::ScalarType;
using mmssl::Tensor;
namespace stable = torch::stable;

mmssl::cpu::ViewAttentionSize checked_size(const Tensor& view, int64_t heads) {
  const ScalarType type = view.scalar_type();
  STD_TORCH_CHECK(view.dim() == 3 && (type == ScalarType::Float || type == ScalarType::Double ||
                                      type == ScalarType::BFloat16),
                  "mmssl::view_attention: view must be (M, N, D) float32, float64 or bfloat16");
  STD_TORCH_CHECK(heads >= 1 && view.size(2) % heads == 0,
                  "mmssl::view_attention: num_heads must divide D = ", view.size(2));
  return {view.size(0), view.size(1), view.size(2), heads};
}

Tensor like_view(const Tensor& t, const Tensor& view, const char* what) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == view.size(0) && t.size(1) == view.size(1) &&
                      t.size(2) == view.size(2) && t.scalar_type() == view.scalar_type(),
                  "mmssl::view_attention: ", what, " must be of the shape and dtype of view");
  return mmssl::as_contiguous(t);
}

Tensor view_attention(const Tensor& query_, const Tensor& key_, const Tensor& view_,
                      int64_t heads) {
  const auto size = checked_size(view_, heads);
  const Tensor query = like_view(query_, view_, "query"), key = like_view(key_, view_, "key");
  const Tensor view = mmssl::as_contiguous(view_);
  Tensor out = stable::new_empty(view, {size.nodes, heads * size.dim});
  mmssl::for_dtype(view.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    mmssl::cpu::view_attention<T, decltype(sum)>(size, data<T>(query), data<T>(key), data<T>(view),
                                                 mutable_data<T>(out), mmssl::torch_threads());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> view_attention_backward(const Tensor& grad_,
                                                           const Tensor& query_,
                                                           const Tensor& key_,
                                                           const Tensor& view_, int64_t heads) {
  const auto size = checked_size(view_, heads);
  STD_TORCH_CHECK(grad_.dim() == 2 && grad_.size(0) == size.nodes &&
                      grad_.size(1) == heads * size.dim &&
                      grad_.scalar_type() == view_.scalar_type(),
                  "mmssl::view_attention: grad must be (N, H D)");
  const Tensor grad = mmssl::as_contiguous(grad_), view = mmssl::as_contiguous(view_);
  const Tensor query = like_view(query_, view_, "query"), key = like_view(key_, view_, "key");
  Tensor grad_query = stable::empty_like(query), grad_key = stable::empty_like(key);
  Tensor grad_view = stable::empty_like(view);
  mmssl::for_dtype(view.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    mmssl::cpu::view_attention_backward<T, decltype(sum)>(
        size, data<T>(grad), data<T>(query), data<T>(key), data<T>(view),
        mutable_data<T>(grad_query), mutable_data<T>(grad_key), mutable_data<T>(grad_view),
        mmssl::torch_threads());
  });
  return {grad_query, grad_key, grad_view};
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
