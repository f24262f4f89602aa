// Checks and unpacks the tensors of masked_topk, and binds it to the kernel of either device.
// Shapes: topk.h.
#pragma once
#include <tuple>

#include "common/check_index.h"
#include "common/torch.h"
#include "ops/topk/topk.h"

namespace mmssl {

struct TopkOperands {
  TopkOperands(const Tensor& user_emb_, const Tensor& item_emb_, int64_t k_, const OptTensor& users_,
               const OptTensor& rowptr_, const OptTensor& col_)
      : user_emb(as_contiguous(user_emb_)),
        item_emb(as_contiguous(item_emb_)),
        users(as_contiguous(users_)),
        rowptr(as_contiguous(rowptr_)),
        col(as_contiguous(col_)),
        type(user_emb.scalar_type()),
        accumulation(accumulation_type(type)),
        k(k_) {
    STD_TORCH_CHECK(is_supported(type),
                    "mmssl::masked_topk: user_emb must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(user_emb.dim() == 2 && item_emb.dim() == 2 && item_emb.scalar_type() == type &&
                        user_emb.size(1) == item_emb.size(1),
                    "mmssl::masked_topk: user_emb must be (U, D) and item_emb (I, D) of one dtype");
    STD_TORCH_CHECK(item_emb.size(0) < (int64_t(1) << 31) && k >= 0,
                    "mmssl::masked_topk: fewer than 2^31 items and k >= 0 are expected");
    for (const OptTensor& t : {OptTensor(item_emb), users, rowptr, col}) {
      STD_TORCH_CHECK(!t.has_value() || on_device_of(user_emb, *t),
                      "mmssl::masked_topk: all tensors must be on the device of user_emb");
    }
    STD_TORCH_CHECK(matches(users, user_emb, ScalarType::Long, {kAny}),
                    "mmssl::masked_topk: users must be (B,) int64");
    batch = users.has_value() ? users->size(0) : user_emb.size(0);
    STD_TORCH_CHECK(rowptr.has_value() == col.has_value(),
                    "mmssl::masked_topk: rowptr and col belong together");
    STD_TORCH_CHECK(matches(rowptr, user_emb, ScalarType::Long, {user_emb.size(0) + 1}) &&
                        matches(col, user_emb, ScalarType::Int, {kAny}),
                    "mmssl::masked_topk: rowptr must be (U + 1,) int64 and col (E,) int32");
  }

  // CPU only: on a GPU the kernel itself skips users out of range, since a check would wait for the
  // device. Columns are compared and never followed.
  void check_indices() const {
    const int64_t num_users = user_emb.size(0);
    if (users.has_value()) cpu::check_ids("users", data<int64_t>(users), batch, num_users);
    STD_TORCH_CHECK(!rowptr.has_value() || cpu::is_rowptr(data<int64_t>(*rowptr), num_users,
                                                          col->size(0), torch_threads()),
                    "mmssl::masked_topk: rowptr must be non-decreasing from 0 to nnz = ",
                    col.has_value() ? col->size(0) : 0);
  }

  // The results: scores (B, k), items (B, k).
  Tensor new_scores() const { return new_empty(user_emb, {batch, k}, accumulation); }
  Tensor new_items() const { return new_empty(user_emb, {batch, k}, ScalarType::Long); }

  template <class T, class A>
  TopkArgs<T, A> args(const Tensor& scores, const Tensor& items) const {
    return {user_emb.size(0),
            item_emb.size(0),
            batch,
            user_emb.size(1),
            k,
            data<T>(user_emb),
            data<T>(item_emb),
            data<int64_t>(users),
            data<int64_t>(rowptr),
            data<int32_t>(col),
            mutable_data<A>(scores),
            mutable_data<int64_t>(items)};
  }

  Tensor user_emb, item_emb;
  OptTensor users, rowptr, col;
  ScalarType type, accumulation;
  int64_t k, batch = 0;
};

template <class Kernel>
std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_emb, const Tensor& item_emb, int64_t k,
                                       const OptTensor& users, const OptTensor& rowptr,
                                       const OptTensor& col) {
  const TopkOperands o(user_emb, item_emb, k, users, rowptr, col);
  const Kernel kernel(o);
  const Tensor scores = o.new_scores(), items = o.new_items();
  for_dtype(o.type, [&](auto storage, auto sum) {
    kernel(o.args<decltype(storage), decltype(sum)>(scores, items));
  });
  return {scores, items};
}

}  // namespace mmssl
