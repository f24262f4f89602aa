// Binds masked_topk to its CUDA kernel.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/topk/kernels.cuh"
#include "ops/topk/operands.h"

namespace {

using namespace mmssl;

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_emb, const Tensor& item_emb, int64_t k,
                                       const OptTensor& users, const OptTensor& rowptr,
                                       const OptTensor& col) {
  const TopkOperands o(user_emb, item_emb, k, users, rowptr, col);
  STD_TORCH_CHECK(k <= cuda::kMaxTopk, "mmssl::masked_topk: on a GPU k must be at most ",
                  cuda::kMaxTopk, ", got ", k);
  const cuda::CurrentDevice device(o.user_emb);
  Tensor scores = o.new_scores(), items = o.new_items();
  for_dtype(o.type, [&](auto storage, auto sum) {
    const auto args = o.args<decltype(storage), decltype(sum)>(scores, items);
    const Tensor scratch =
        cuda::new_scratch(o.user_emb, cuda::topk_scratch(args, device.processors()));
    MMSSL_CUDA_CHECK(cuda::launch_masked_topk(args, scratch.mutable_data_ptr(),
                                              device.processors(), device.stream));
  });
  return {scores, items};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) { m.impl("masked_topk", TORCH_BOX(&masked_topk)); }
