// Schemas of bpr_loss and its binding to the CPU kernel.
#include <tuple>

#include "ops/bpr/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor, Tensor> bpr_loss(const Tensor& user_emb, const Tensor& item_emb,
                                            const Tensor& users, const Tensor& pos_items,
                                            const Tensor& neg_items) {
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  o.check_ids();
  Tensor loss = o.new_scalar(), squares = o.new_scalar(), slope = o.new_slope();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using A = decltype(sum);
    cpu::bpr_forward<decltype(storage), A>(o.args<decltype(storage)>(), mutable_data<A>(loss),
                                           mutable_data<A>(squares), mutable_data<A>(slope),
                                           torch_threads());
  });
  return {loss, squares, slope};
}

// The orders, which say where each row occurs in the batch, are not needed: the CPU chains the
// positions of a row itself.
std::tuple<Tensor, Tensor> bpr_loss_backward(const Tensor& grad_loss, const Tensor& grad_squares,
                                             const Tensor& user_emb, const Tensor& item_emb,
                                             const Tensor& users, const Tensor& pos_items,
                                             const Tensor& neg_items, const Tensor& slope,
                                             const OptTensor& user_order,
                                             const OptTensor& item_order) {
  const BprGradOperands o(grad_loss, grad_squares, user_emb, item_emb, users, pos_items, neg_items,
                          slope, user_order, item_order);
  o.check_ids();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    cpu::bpr_backward<T, A>(o.args<T>(), *data<A>(o.grad_loss), *data<A>(o.grad_squares),
                            data<A>(o.slope), mutable_data<T>(o.grad_user),
                            mutable_data<T>(o.grad_item), torch_threads());
  });
  return {o.grad_user, o.grad_item};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "bpr_loss(Tensor user_emb, Tensor item_emb, Tensor users, Tensor pos_items, "
      "Tensor neg_items) -> (Tensor, Tensor, Tensor)");
  m.def(
      "bpr_loss_backward(Tensor grad_loss, Tensor grad_squares, Tensor user_emb, Tensor item_emb, "
      "Tensor users, Tensor pos_items, Tensor neg_items, Tensor slope, Tensor? user_order, "
      "Tensor? item_order) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward));
}
