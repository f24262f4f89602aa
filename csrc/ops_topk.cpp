// Schema of masked_topk and its binding to the CPU kernel. Shapes: csrc/common/topk_args.h.
#include <tuple>

#include "common/topk_operands.h"
#include "common/torch_threads.h"
#include "cpu/check_index.h"
#include "cpu/topk.h"

namespace {

using mmssl::OptTensor;
using mmssl::Tensor;
using mmssl::TopkOperands;

// Everything the kernel follows: users into rowptr, rowptr into col. It compares the columns and never
// follows them.
void check_indices(const TopkOperands& o) {
  const int64_t num_users = o.user_emb.size(0);
  if (o.users.has_value()) {
    const int64_t* users = mmssl::data<int64_t>(*o.users);
    for (int64_t b = 0; b < o.batch; ++b) {
      STD_TORCH_CHECK(users[b] >= 0 && users[b] < num_users,
                      "mmssl::masked_topk: users must lie in [0, ", num_users, "), got ", users[b]);
    }
  }
  if (o.rowptr.has_value()) {
    STD_TORCH_CHECK(mmssl::cpu::rises_from_zero(mmssl::data<int64_t>(*o.rowptr), num_users,
                                                o.col->size(0), mmssl::torch_threads()),
                    "mmssl::masked_topk: rowptr must rise from 0 to the number of edges, ",
                    o.col->size(0));
  }
}

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_emb, const Tensor& item_emb, int64_t k,
                                       const OptTensor& users, const OptTensor& rowptr,
                                       const OptTensor& col) {
  const TopkOperands o(user_emb, item_emb, k, users, rowptr, col);
  check_indices(o);
  Tensor scores = o.new_scores(), items = o.new_items();
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    mmssl::cpu::masked_topk<T, A>(o.args<T, A>(scores, items), mmssl::torch_threads());
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
