// Multi-head attention between the M views of one node, averaged over the queries: the sizes of both
// devices, and the CPU kernels. For a node with views v_b, queries q_a and keys k_b, and heads h of D / H features each:
//
//   p[a, b, h] = softmax over b of <q_a, k_b>_h / sqrt(D / H),  w[b, h] = mean over a of p[a, b, h]
//   out[h] = sum_b w[b, h] v_b        (every head weighs the full views)
//
// Row-major and contiguous: query, key and view (M, N, D), out (N, H, D).
#pragma once
#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl {

struct ViewAttentionSize {
  int64_t views, nodes, dim, heads;  // M, N, D, H; H divides D
};

namespace cpu {

template <class T, class A>
void view_attention(const ViewAttentionSize& size, const T* query, const T* key, const T* view,
                    T* out, const Parallel& pool);

// Gradients for query, key and view, given that for out; the weights are formed again.
template <class T, class A>
void view_attention_backward(const ViewAttentionSize& size, const T* grad, const T* query,
                             const T* key, const T* view, T* grad_query, T* grad_key, T* grad_view,
                             const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
