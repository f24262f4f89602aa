// Schema of masked_topk and its binding to the CPU kernel.
#include <tuple>

#include "ops/topk/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_emb, const Tensor& item_emb, int64_t k,
                                       const OptTensor& users, const OptTensor& rowptr,
                                       const OptTensor& col) {
  const TopkOperands o(user_emb, item_emb, k, users, rowptr, col);
  o.check_indices();
  Tensor scores = o.new_scores(), items = o.new_items();
  for_dtype(o.type, [&](auto storage, auto sum) {
    cpu::masked_topk(o.args<decltype(storage), decltype(sum)>(scores, items), torch_threads());
  });
  return {scores, items};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "masked_topk(Tensor user_emb, Tensor item_emb, int k, Tensor? users, Tensor? rowptr, "
      "Tensor? col) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) { m.impl("masked_topk", TORCH_BOX(&masked_topk)); }
