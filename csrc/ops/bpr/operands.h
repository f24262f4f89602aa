// Checks and unpacks the tensors of bpr_loss, and binds it to the kernels of either device. Shapes:
// bpr.h.
#pragma once
#include <tuple>

#include "common/check_index.h"
#include "common/torch.h"
#include "ops/bpr/bpr.h"

namespace mmssl {

struct BprOperands {
  BprOperands(const Tensor& user_emb_, const Tensor& item_emb_, const Tensor& users_,
              const Tensor& pos_, const Tensor& neg_)
      : user_emb(as_contiguous(user_emb_)),
        item_emb(as_contiguous(item_emb_)),
        users(as_contiguous(users_)),
        pos(as_contiguous(pos_)),
        neg(as_contiguous(neg_)),
        type(user_emb.scalar_type()),
        accumulation(accumulation_type(type)),
        batch(users.numel()) {
    STD_TORCH_CHECK(is_supported(type),
                    "mmssl::bpr_loss: user_emb must be float32, float64 or bfloat16");
    STD_TORCH_CHECK(user_emb.dim() == 2 && item_emb.dim() == 2 && item_emb.scalar_type() == type &&
                        user_emb.size(1) == item_emb.size(1),
                    "mmssl::bpr_loss: user_emb must be (U, D), item_emb (I, D), of one dtype");
    STD_TORCH_CHECK(on_device_of(user_emb, item_emb),
                    "mmssl::bpr_loss: item_emb must be on the device of user_emb");
    for (const Tensor* ids : {&users, &pos, &neg}) {
      STD_TORCH_CHECK(matches(*ids, user_emb, ScalarType::Long, {batch}),
                      "mmssl::bpr_loss: users, pos_items and neg_items must be (B,) int64 on the "
                      "device of user_emb");
    }
    STD_TORCH_CHECK(batch < int64_t(1) << 30, "mmssl::bpr_loss: at most 2^30 - 1 triples, got ",
                    batch);
  }

  // CPU only: on a GPU the ids are not checked, since that would wait for the device.
  void check_ids() const {
    cpu::check_ids("users", data<int64_t>(users), batch, user_emb.size(0));
    cpu::check_ids("pos_items", data<int64_t>(pos), batch, item_emb.size(0));
    cpu::check_ids("neg_items", data<int64_t>(neg), batch, item_emb.size(0));
  }

  template <class T>
  BprArgs<T> args() const {
    return {data<T>(user_emb),  data<T>(item_emb), data<int64_t>(users), data<int64_t>(pos),
            data<int64_t>(neg), user_emb.size(0),  item_emb.size(0),     batch,
            user_emb.size(1)};
  }

  Tensor new_sums(std::initializer_list<int64_t> sizes) const {
    return new_empty(user_emb, sizes, accumulation);
  }

  Tensor user_emb, item_emb, users, pos, neg;
  ScalarType type, accumulation;
  int64_t batch;
};

// The same for the backward, with its empty results.
struct BprGradOperands : BprOperands {
  BprGradOperands(const Tensor& grad_loss_, const Tensor& grad_squares_, const Tensor& user_emb_,
                  const Tensor& item_emb_, const Tensor& users_, const Tensor& pos_,
                  const Tensor& neg_, const Tensor& slope_, const OptTensor& user_order_,
                  const OptTensor& item_order_)
      : BprOperands(user_emb_, item_emb_, users_, pos_, neg_),
        grad_loss(grad_loss_),
        grad_squares(grad_squares_),
        slope(as_contiguous(slope_)),
        user_order(as_contiguous(user_order_)),
        item_order(as_contiguous(item_order_)),
        grad_user(empty_like(user_emb)),
        grad_item(empty_like(item_emb)) {
    for (const Tensor* grad : {&grad_loss, &grad_squares}) {
      STD_TORCH_CHECK(
          grad->numel() == 1 && grad->scalar_type() == accumulation && on_device_of(user_emb, *grad),
          "mmssl::bpr_loss_backward: the gradients must be one number like the outputs");
    }
    STD_TORCH_CHECK(matches(slope, user_emb, accumulation, {batch}),
                    "mmssl::bpr_loss_backward: slope must be what the forward returned");
    STD_TORCH_CHECK(matches(user_order, user_emb, ScalarType::Long, {batch}) &&
                        matches(item_order, user_emb, ScalarType::Long, {2 * batch}),
                    "mmssl::bpr_loss_backward: user_order must be (B,) and item_order (2 B,), int64 "
                    "on the device of user_emb");
  }

  Tensor grad_loss, grad_squares, slope;
  OptTensor user_order, item_order;
  Tensor grad_user, grad_item;
};

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> bpr_loss(const Tensor& user_emb, const Tensor& item_emb,
                                            const Tensor& users, const Tensor& pos_items,
                                            const Tensor& neg_items) {
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  const Kernels kernels(o);
  const Tensor loss = o.new_sums({}), squares = o.new_sums({}), slope = o.new_sums({o.batch});
  for_dtype(o.type, [&](auto storage, auto sum) {
    using A = decltype(sum);
    kernels.forward(o.args<decltype(storage)>(), mutable_data<A>(loss), mutable_data<A>(squares),
                    mutable_data<A>(slope));
  });
  return {loss, squares, slope};
}

template <class Kernels>
std::tuple<Tensor, Tensor> bpr_loss_backward(
    const Tensor& grad_loss, const Tensor& grad_squares, const Tensor& user_emb,
    const Tensor& item_emb, const Tensor& users, const Tensor& pos_items, const Tensor& neg_items,
    const Tensor& slope, const OptTensor& user_order, const OptTensor& item_order) {
  const BprGradOperands o(grad_loss, grad_squares, user_emb, item_emb, users, pos_items, neg_items,
                          slope, user_order, item_order);
  const Kernels kernels(o);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    kernels.backward(o.args<T>(), data<A>(o.grad_loss), data<A>(o.grad_squares), data<A>(o.slope),
                     data<int64_t>(o.user_order), data<int64_t>(o.item_order),
                     mutable_data<T>(o.grad_user), mutable_data<T>(o.grad_item));
  });
  return {o.grad_user, o.grad_item};
}

}  // namespace mmssl
