// Checks and unpacks the tensors of masked_topk for either backend: what would make a kernel read out
// of bounds. Shapes: csrc/common/topk_args.h.
#pragma once
#include "common/stable_args.h"
#include "common/topk_args.h"

namespace mmssl {

struct TopkOperands {
  TopkOperands(const Tensor& user_emb_, const Tensor& item_emb_, int64_t k_, const OptTensor& users_,
               const OptTensor& rowptr_, const OptTensor& col_)
      : user_emb(as_contiguous(user_emb_)),
        item_emb(as_contiguous(item_emb_)),
        k(k_) {
    const ScalarType type = user_emb.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "mmssl::masked_topk: user_emb must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(user_emb.dim() == 2 && item_emb.dim() == 2 && item_emb.scalar_type() == type &&
                        user_emb.size(1) == item_emb.size(1),
                    "mmssl::masked_topk: user_emb must be (U, D) and item_emb (I, D) of one dtype");
    STD_TORCH_CHECK(item_emb.size(0) < (int64_t(1) << 31) && k >= 0,
                    "mmssl::masked_topk: fewer than 2^31 items and k >= 0 are expected");
    accumulation = accumulation_type(type);
    STD_TORCH_CHECK(on_device_of(user_emb, item_emb) &&
                        (!users_.has_value() || on_device_of(user_emb, *users_)) &&
                        (!rowptr_.has_value() || on_device_of(user_emb, *rowptr_)) &&
                        (!col_.has_value() || on_device_of(user_emb, *col_)),
                    "mmssl::masked_topk: all tensors must be on the device of user_emb");
    batch = user_emb.size(0);
    if (users_.has_value()) {
      users = as_contiguous(*users_);
      STD_TORCH_CHECK(users->dim() == 1 && users->scalar_type() == ScalarType::Long,
                      "mmssl::masked_topk: users must be (B,) int64");
      batch = users->size(0);
    }
    STD_TORCH_CHECK(rowptr_.has_value() == col_.has_value(),
                    "mmssl::masked_topk: rowptr and col belong together");
    if (!rowptr_.has_value()) return;
    rowptr = as_contiguous(*rowptr_);
    col = as_contiguous(*col_);
    STD_TORCH_CHECK(rowptr->dim() == 1 && rowptr->size(0) == user_emb.size(0) + 1 &&
                        rowptr->scalar_type() == ScalarType::Long && col->dim() == 1 &&
                        col->scalar_type() == ScalarType::Int,
                    "mmssl::masked_topk: rowptr must be (U + 1,) int64 and col (E,) int32");
  }

  // The results: scores (B, k), items (B, k).
  Tensor new_scores() const { return torch::stable::new_empty(user_emb, {batch, k}, accumulation); }
  Tensor new_items() const {
    return torch::stable::new_empty(user_emb, {batch, k}, ScalarType::Long);
  }

  template <class T, class A>
  TopkArgs<T, A> args(const Tensor& scores, const Tensor& items) const {
    return {user_emb.size(0),
            item_emb.size(0),
            batch,
            user_emb.size(1),
            k,
            data<T>(user_emb),
            data<T>(item_emb),
            users.has_value() ? data<int64_t>(*users) : nullptr,
            rowptr.has_value() ? data<int64_t>(*rowptr) : nullptr,
            col.has_value() ? data<int32_t>(*col) : nullptr,
            mutable_data<A>(scores),
            mutable_data<int64_t>(items)};
  }

  Tensor user_emb, item_emb;
  OptTensor users, rowptr, col;
  ScalarType accumulation;
  int64_t k, batch;
};

}  // namespace mmssl
