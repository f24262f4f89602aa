// Binds bpr_loss to its CUDA kernels.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/bpr/batch.cuh"
#include "ops/bpr/kernels.cuh"
#include "ops/bpr/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const BprOperands& o)
      : device_(o.user_emb), scratch_(o.new_sums({2, o.batch})) {}
  explicit Kernels(const BprGradOperands& o) : device_(o.user_emb) {
    STD_TORCH_CHECK(o.user_order.has_value() && o.item_order.has_value(),
                    "mmssl::bpr_loss_backward: on a GPU user_order and item_order are required");
  }

  template <class T, class A>
  void forward(const BprArgs<T>& a, A* loss, A* squares, A* slope) const {
    MMSSL_CUDA_CHECK(cuda::launch_bpr(a, loss, squares, slope, mutable_data<A>(*scratch_),
                                      device_.stream));
  }

  template <class T, class A>
  void backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares, const A* slope,
                const int64_t* user_order, const int64_t* item_order, T* grad_user,
                T* grad_item) const {
    MMSSL_CUDA_CHECK(cuda::launch_bpr_backward(a, grad_loss, grad_squares, slope, user_order,
                                               item_order, grad_user, grad_item, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
  OptTensor scratch_;  // of the forward
};

void check_wide(ScalarType type, const char* what) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "mmssl::", what,
                  ": expected float32 or float64");
}

std::tuple<Tensor, Tensor> batch_rows(const Tensor& user_, const Tensor& modality_,
                                      const Tensor& users_) {
  const Tensor user = as_contiguous(user_), users = as_contiguous(users_);
  const ScalarType type = user.scalar_type();
  check_wide(type, "batch_rows");
  STD_TORCH_CHECK(user.dim() == 2 && matches(modality_, user, type, {kAny, user.size(0), user.size(1)}) &&
                      matches(users, user, ScalarType::Long, {kAny}),
                  "mmssl::batch_rows: expected user (U, D), modality (M, U, D) of its dtype and users "
                  "(B,) int64, on one device");
  const Tensor modality = modality_.stride(2) == 1 ? modality_ : as_contiguous(modality_);
  const cuda::CurrentDevice device(user);
  const Tensor anchor = new_empty(user, {modality.size(0), users.size(0), user.size(1)});
  const Tensor positive = empty_like(anchor);
  for_dtype(type, [&](auto, auto sum) {
    using A = decltype(sum);
    const cuda::BatchRows<A> a{modality.size(0),      users.size(0),       user.size(1),
                               data<int64_t>(users),  data<A>(user),       data<A>(modality),
                               modality.stride(0),    modality.stride(1),  mutable_data<A>(anchor),
                               mutable_data<A>(positive)};
    MMSSL_CUDA_CHECK(cuda::launch_batch_rows(a, device.stream));
  });
  return {anchor, positive};
}

std::tuple<Tensor, Tensor> batch_terms(const Tensor& user, const Tensor& item, const Tensor& users,
                                       const Tensor& pos, const Tensor& neg, const Tensor& of_users_,
                                       const Tensor& of_items_, const OptTensor& contrast_,
                                       const OptTensor& score, const Tensor& weights_) {
  const BprOperands o(user, item, users, pos, neg);
  check_wide(o.type, "batch_terms");
  const Tensor of_users = as_contiguous(of_users_), of_items = as_contiguous(of_items_);
  const Tensor weights = as_contiguous(weights_);
  const OptTensor contrast = as_contiguous(contrast_);
  const auto fits = [&](const Tensor& t) {
    return t.scalar_type() == o.type && on_device_of(o.user_emb, t);
  };
  STD_TORCH_CHECK(fits(of_users) && fits(of_items) && fits(weights) && weights.numel() == 5 &&
                      (!contrast || fits(*contrast)) && (!score || (fits(*score) && score->numel() == 1)),
                  "mmssl::batch_terms: expected features, contrast, a score and five weights of the "
                  "dtype and on the device of user");
  const cuda::Launch launch(o.user_emb, cuda::batch_scratch(o.batch) * sizeof(double));
  const Tensor out = o.new_sums({6}), slope = o.new_sums({o.batch});
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    const cuda::BatchTerms<A> a{o.args<A>(),
                                {data<A>(of_users), data<A>(of_items)},
                                {of_users.numel(), of_items.numel()},
                                data<A>(contrast),
                                contrast ? contrast->numel() : 0,
                                data<A>(score),
                                data<A>(weights),
                                mutable_data<A>(slope),
                                mutable_data<A>(out)};
    MMSSL_CUDA_CHECK(cuda::launch_batch_terms(a, launch.scratch<double>(), launch.device.stream));
  });
  return {out, slope};
}

Tensor batch_terms_backward(const Tensor& scaled_, const Tensor& user, const Tensor& item,
                            const Tensor& users, const Tensor& pos, const Tensor& neg,
                            const Tensor& slope_, const OptTensor& to_anchor_,
                            const OptTensor& to_positive_) {
  const BprOperands o(user, item, users, pos, neg);
  check_wide(o.type, "batch_terms_backward");
  const Tensor scaled = as_contiguous(scaled_), slope = as_contiguous(slope_);
  const OptTensor to_anchor = as_contiguous(to_anchor_), to_positive = as_contiguous(to_positive_);
  const int64_t d = o.user_emb.size(1), views = to_anchor ? to_anchor->size(0) : 0;
  STD_TORCH_CHECK(matches(scaled, o.user_emb, o.type, {5}) &&
                      matches(slope, o.user_emb, o.type, {o.batch}) &&
                      to_anchor.has_value() == to_positive.has_value() &&
                      matches(to_anchor, o.user_emb, o.type, {kAny, o.batch, d}) &&
                      matches(to_positive, o.user_emb, o.type, {views, o.batch, d}),
                  "mmssl::batch_terms_backward: expected five weights, a slope per triple and gradients "
                  "(M, B, D) of anchors and positives, of the dtype and on the device of user");
  const cuda::CurrentDevice device(o.user_emb);
  const int64_t rows = (1 + views) * o.user_emb.size(0) + o.item_emb.size(0);
  const Tensor out = new_empty(o.user_emb, {rows, d});
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    const cuda::BatchGradient<A> a{o.args<A>(),       data<A>(scaled),      data<A>(slope), views,
                                   data<A>(to_anchor), data<A>(to_positive), mutable_data<A>(out)};
    MMSSL_CUDA_CHECK(cuda::launch_batch_gradient(a, device.stream));
  });
  return out;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("batch_rows", TORCH_BOX(&batch_rows));
  m.impl("batch_terms", TORCH_BOX(&batch_terms));
  m.impl("batch_terms_backward", TORCH_BOX(&batch_terms_backward));
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss<Kernels>));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward<Kernels>));
}
