// Schemas of bpr_loss and its binding to the CPU kernel.
#include "ops/bpr/operands.h"

namespace {

using namespace mmssl;

struct Kernels {
  explicit Kernels(const BprOperands& o) { o.check_ids(); }

  template <class T, class A>
  void forward(const BprArgs<T>& a, A* loss, A* squares, A* slope) const {
    cpu::bpr_forward(a, loss, squares, slope, torch_threads());
  }

  // The orders, which say where each row occurs in the batch, are not needed: the CPU chains the
  // positions of a row itself.
  template <class T, class A>
  void backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares, const A* slope,
                const int64_t*, const int64_t*, T* grad_user, T* grad_item) const {
    cpu::bpr_backward(a, *grad_loss, *grad_squares, slope, grad_user, grad_item, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "bpr_loss(Tensor user_emb, Tensor item_emb, Tensor users, Tensor pos_items, "
      "Tensor neg_items) -> (Tensor, Tensor, Tensor)");
  m.def(
      "bpr_loss_backward(Tensor grad_loss, Tensor grad_squares, Tensor user_emb, Tensor item_emb, "
      "Tensor users, Tensor pos_items, Tensor neg_items, Tensor slope, Tensor? user_order, "
      "Tensor? item_order) -> (Tensor, Tensor)");
  // For a GPU: the losses of a batch as one. On the CPU the same numbers come from other operators.
  m.def("batch_rows(Tensor user, Tensor modality, Tensor users) -> (Tensor, Tensor)");
  m.def(
      "batch_terms(Tensor user, Tensor item, Tensor users, Tensor pos_items, Tensor neg_items, "
      "Tensor user_feature, Tensor item_feature, Tensor? contrast, Tensor? score, Tensor weights) -> "
      "(Tensor, Tensor)");
  m.def(
      "batch_terms_backward(Tensor scaled, Tensor user, Tensor item, Tensor users, Tensor pos_items, "
      "Tensor neg_items, Tensor slope, Tensor? to_anchor, Tensor? to_positive) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss<Kernels>));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward<Kernels>));
}
