// Checks and unpacks the tensors of bpr_loss for either backend: what would make a kernel read out of
// bounds, but for the ids themselves, which only the CPU can look at without waiting.
#pragma once
#include "common/bpr_args.h"
#include "common/stable_args.h"

namespace mmssl {

struct BprOperands {
  BprOperands(const Tensor& user_emb_, const Tensor& item_emb_, const Tensor& users_,
              const Tensor& pos_, const Tensor& neg_)
      : user_emb(as_contiguous(user_emb_)),
        item_emb(as_contiguous(item_emb_)),
        users(as_contiguous(users_)),
        pos(as_contiguous(pos_)),
        neg(as_contiguous(neg_)) {
    const ScalarType type = user_emb.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "mmssl::bpr_loss: user_emb must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(user_emb.dim() == 2 && item_emb.dim() == 2 && item_emb.scalar_type() == type &&
                        user_emb.size(1) == item_emb.size(1),
                    "mmssl::bpr_loss: user_emb must be (U, D), item_emb (I, D), of one dtype");
    STD_TORCH_CHECK(on_device_of(user_emb, item_emb),
                    "mmssl::bpr_loss: item_emb must be on the device of user_emb");
    accumulation = accumulation_type(type);
    batch = users.numel();
    for (const Tensor* ids : {&users, &pos, &neg}) {
      STD_TORCH_CHECK(ids->dim() == 1 && ids->size(0) == batch &&
                          ids->scalar_type() == ScalarType::Long && on_device_of(user_emb, *ids),
                      "mmssl::bpr_loss: users, pos_items and neg_items must be (B,) int64 on the "
                      "device of user_emb");
    }
    STD_TORCH_CHECK(batch < int64_t(1) << 30, "mmssl::bpr_loss: at most 2^30 - 1 triples, got ",
                    batch);
  }

  template <class T>
  BprArgs<T> args() const {
    return {data<T>(user_emb),  data<T>(item_emb), data<int64_t>(users), data<int64_t>(pos),
            data<int64_t>(neg), user_emb.size(0),  item_emb.size(0),     batch,
            user_emb.size(1)};
  }

  Tensor new_scalar() const { return torch::stable::new_empty(user_emb, {}, accumulation); }
  Tensor new_slope() const { return torch::stable::new_empty(user_emb, {batch}, accumulation); }

  void check_backward(const Tensor& grad_loss, const Tensor& grad_squares,
                      const Tensor& slope) const {
    STD_TORCH_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == accumulation &&
                        grad_squares.numel() == 1 && grad_squares.scalar_type() == accumulation &&
                        on_device_of(user_emb, grad_loss) && on_device_of(user_emb, grad_squares),
                    "mmssl::bpr_loss_backward: the gradients must be one number like the outputs");
    STD_TORCH_CHECK(slope.dim() == 1 && slope.size(0) == batch &&
                        slope.scalar_type() == accumulation && on_device_of(user_emb, slope),
                    "mmssl::bpr_loss_backward: slope must be what the forward returned");
  }

  Tensor user_emb, item_emb, users, pos, neg;
  ScalarType accumulation;
  int64_t batch;
};

}  // namespace mmssl
