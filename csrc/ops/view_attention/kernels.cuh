// Attention between the views of one node on the GPU: launchers over raw pointers. Formula and
// shapes: view_attention.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/view_attention/view_attention.h"

namespace mmssl::cuda {

// Numbers of shared memory that a warp needs for its node: p (H, M, M), w (H, M) and its gradient.
inline int64_t view_attention_numbers(const ViewAttentionSize& size) {
  return size.heads * size.views * (size.views + 2);
}
// The most of them that a block can have on every device since sm_80, for one warp.
constexpr int64_t kViewAttentionBytes = 99 << 10;

template <class T, class A>
cudaError_t launch_view_attention(const ViewAttentionSize& size, const T* query, const T* key,
                                  const T* view, T* out, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_view_attention_backward(const ViewAttentionSize& size, const T* grad,
                                           const T* query, const T* key, const T* view,
                                           T* grad_query, T* grad_key, T* grad_view,
                                           cudaStream_t stream);

}  // namespace mmssl::cuda
