// Binds masked_topk to its CUDA kernel; mmssl._C holds the schema. Compiled, not run on a GPU yet.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>

#include "common/topk_operands.h"
#include "cuda/topk.cuh"

namespace {

using mmssl::OptTensor;
using mmssl::Tensor;

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_emb, const Tensor& item_emb, int64_t k,
                                       const OptTensor& users, const OptTensor& rowptr,
                                       const OptTensor& col) {
  const int32_t device = user_emb.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const mmssl::TopkOperands o(user_emb, item_emb, k, users, rowptr, col);
  STD_TORCH_CHECK(k <= mmssl::cuda::kMaxTopk, "mmssl::masked_topk: lists of at most ",
                  mmssl::cuda::kMaxTopk, " are expected on a GPU, got k = ", k);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  int processors = 1;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  Tensor scores = o.new_scores(), items = o.new_items();
  mmssl::for_dtype(o.user_emb.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const mmssl::TopkArgs<T, A> args = o.args<T, A>(scores, items);
    Tensor scratch = torch::stable::new_empty(
        o.user_emb, {mmssl::cuda::topk_scratch(args, processors)}, mmssl::ScalarType::Byte);
    STD_CUDA_CHECK(mmssl::cuda::launch_masked_topk(args, scratch.mutable_data_ptr(), processors,
                                                   static_cast<cudaStream_t>(stream)));
  });
  return {scores, items};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmssl, CUDA, m) { m.impl("masked_topk", TORCH_BOX(&masked_topk)); }
