// Binds bpr_loss to its CUDA kernels; mmssl._C holds the schemas. Compiled, not run on a GPU yet.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>

#include "common/bpr_operands.h"
#include "cuda/bpr.cuh"

namespace {

using mmssl::BprOperands;
using mmssl::OptTensor;
using mmssl::ScalarType;
using mmssl::Tensor;

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

std::tuple<Tensor, Tensor, Tensor> bpr_loss(const Tensor& user_emb, const Tensor& item_emb,
                                            const Tensor& users, const Tensor& pos_items,
                                            const Tensor& neg_items) {
  const torch::stable::accelerator::DeviceGuard guard(user_emb.get_device_index());
  const cudaStream_t stream = current_stream(user_emb.get_device_index());
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  Tensor loss = o.new_scalar(), squares = o.new_scalar(), slope = o.new_slope();
  Tensor scratch = torch::stable::new_empty(o.user_emb, {2, o.batch}, o.accumulation);
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    STD_CUDA_CHECK((mmssl::cuda::launch_bpr<T, A>(
        o.args<T>(), mmssl::mutable_data<A>(loss), mmssl::mutable_data<A>(squares),
        mmssl::mutable_data<A>(slope), mmssl::mutable_data<A>(scratch), stream)));
  });
  return {loss, squares, slope};
}

Tensor checked_order(const OptTensor& order, int64_t size) {
  STD_TORCH_CHECK(order.has_value() && order->dim() == 1 && order->size(0) == size &&
                      order->scalar_type() == ScalarType::Long,
                  "mmssl::bpr_loss_backward: user_order (B,) and item_order (2 B,) must be int64");
  return mmssl::as_contiguous(*order);
}

std::tuple<Tensor, Tensor> bpr_loss_backward(const Tensor& grad_loss, const Tensor& grad_squares,
                                             const Tensor& user_emb, const Tensor& item_emb,
                                             const Tensor& users, const Tensor& pos_items,
                                             const Tensor& neg_items, const Tensor& slope_,
                                             const OptTensor& user_order_,
                                             const OptTensor& item_order_) {
  const torch::stable::accelerator::DeviceGuard guard(user_emb.get_device_index());
  const cudaStream_t stream = current_stream(user_emb.get_device_index());
  const BprOperands o(user_emb, item_emb, users, pos_items, neg_items);
  const Tensor slope = mmssl::as_contiguous(slope_);
  o.check_backward(grad_loss, grad_squares, slope);
  const Tensor user_order = checked_order(user_order_, o.batch);
  const Tensor item_order = checked_order(item_order_, 2 * o.batch);
  Tensor grad_user = torch::stable::empty_like(o.user_emb);
  Tensor grad_item = torch::stable::empty_like(o.item_emb);
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    STD_CUDA_CHECK((mmssl::cuda::launch_bpr_backward<T, A>(
        o.args<T>(), mmssl::data<A>(grad_loss), mmssl::data<A>(grad_squares),
        mmssl::data<A>(slope), mmssl::data<int64_t>(user_order), mmssl::data<int64_t>(item_order),
        mmssl::mutable_data<T>(grad_user), mmssl::mutable_data<T>(grad_item), stream)));
  });
  return {grad_user, grad_item};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmssl, CUDA, m) {
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward));
}
