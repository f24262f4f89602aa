// Binds bpr_loss to its CUDA kernels.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/bpr/kernels.cuh"
#include "ops/bpr/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor, Tensor> bpr_loss(const Tensor& user_emb, const Tensor& item_emb,
                                            const Tensor& users, const Tensor& pos_items,
                                            const Tensor& neg_items) {
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  const cuda::CurrentDevice device(o.user_emb);
  Tensor loss = o.new_scalar(), squares = o.new_scalar(), slope = o.new_slope();
  const Tensor scratch = new_empty(o.user_emb, {2, o.batch}, o.accumulation);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    MMSSL_CUDA_CHECK((cuda::launch_bpr<T, A>(o.args<T>(), mutable_data<A>(loss),
                                             mutable_data<A>(squares), mutable_data<A>(slope),
                                             mutable_data<A>(scratch), device.stream)));
  });
  return {loss, squares, slope};
}

std::tuple<Tensor, Tensor> bpr_loss_backward(const Tensor& grad_loss, const Tensor& grad_squares,
                                             const Tensor& user_emb, const Tensor& item_emb,
                                             const Tensor& users, const Tensor& pos_items,
                                             const Tensor& neg_items, const Tensor& slope,
                                             const OptTensor& user_order,
                                             const OptTensor& item_order) {
  const BprGradOperands o(grad_loss, grad_squares, user_emb, item_emb, users, pos_items, neg_items,
                          slope, user_order, item_order);
  STD_TORCH_CHECK(user_order.has_value() && item_order.has_value(),
                  "mmssl::bpr_loss_backward: on a GPU user_order and item_order are required");
  const cuda::CurrentDevice device(o.user_emb);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    MMSSL_CUDA_CHECK((cuda::launch_bpr_backward<T, A>(
        o.args<T>(), data<A>(o.grad_loss), data<A>(o.grad_squares), data<A>(o.slope),
        data<int64_t>(o.user_order), data<int64_t>(o.item_order), mutable_data<T>(o.grad_user),
        mutable_data<T>(o.grad_item), device.stream)));
  });
  return {o.grad_user, o.grad_item};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward));
}
