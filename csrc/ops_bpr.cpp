// Schemas of bpr_loss and its binding to the CPU kernel. Formula: csrc/common/bpr_args.h.
#include <tuple>

#include "common/bpr_operands.h"
#include "common/torch_threads.h"
#include "cpu/bpr.h"

namespace {

using mmssl::BprOperands;
using mmssl::OptTensor;
using mmssl::Tensor;

void check_ids(const char* name, const Tensor& ids, int64_t limit) {
  const int64_t* p = mmssl::data<int64_t>(ids);
  for (int64_t b = 0; b < ids.size(0); ++b) {
    STD_TORCH_CHECK(p[b] >= 0 && p[b] < limit, "mmssl::bpr_loss: ", name, " must lie in [0, ", limit,
                    "), got ", p[b]);
  }
}

void check_ids(const BprOperands& o) {
  check_ids("users", o.users, o.user_emb.size(0));
  check_ids("pos_items", o.pos, o.item_emb.size(0));
  check_ids("neg_items", o.neg, o.item_emb.size(0));
}

std::tuple<Tensor, Tensor, Tensor> bpr_loss(const Tensor& user_emb, const Tensor& item_emb,
                                            const Tensor& users, const Tensor& pos_items,
                                            const Tensor& neg_items) {
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  check_ids(o);
  Tensor loss = o.new_scalar(), squares = o.new_scalar(), slope = o.new_slope();
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::bpr_forward<T, A>(o.args<T>(), mmssl::mutable_data<A>(loss),
                                  mmssl::mutable_data<A>(squares), mmssl::mutable_data<A>(slope),
                                  mmssl::torch_threads());
  });
  return {loss, squares, slope};
}

// The orders say where in the batch each row stands; the CPU chains the places itself.
std::tuple<Tensor, Tensor> bpr_loss_backward(const Tensor& grad_loss, const Tensor& grad_squares,
                                             const Tensor& user_emb, const Tensor& item_emb,
                                             const Tensor& users, const Tensor& pos_items,
                                             const Tensor& neg_items, const Tensor& slope_,
                                             const OptTensor&, const OptTensor&) {
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  const Tensor slope = mmssl::as_contiguous(slope_);
  o.check_backward(grad_loss, grad_squares, slope);
  check_ids(o);
  Tensor grad_user = torch::stable::empty_like(o.user_emb);
  Tensor grad_item = torch::stable::empty_like(o.item_emb);
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::bpr_backward<T, A>(o.args<T>(), *mmssl::data<A>(grad_loss),
                                   *mmssl::data<A>(grad_squares), mmssl::data<A>(slope),
                                   mmssl::mutable_data<T>(grad_user),
                                   mmssl::mutable_data<T>(grad_item), mmssl::torch_threads());
  });
  return {grad_user, grad_item};
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
