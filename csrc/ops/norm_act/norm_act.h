// LeakyReLU, batch normalization with batch statistics and dropout in one pass: the arguments of
// both devices as raw pointers, and the CPU kernels.
//
//   a = max(x, slope x),  xhat = (a - mean) * rstd,  y = keep * keep_scale * (weight * xhat + bias)
//
// with mean and rstd = 1 / sqrt(var + eps) over the N rows of each column; its gradient, and the
// gradient of that, which a gradient penalty needs. G groups of N rows, one below the other, have
// statistics of their own. Row-major arrays, contiguous.
#pragma once
#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl {

// A is the type of sums, statistics and parameters: float for float and bf16 storage, else double.
template <class A>
struct NormActArgs {
  int64_t rows = 0;                // N, of a group
  int64_t columns = 0;             // H
  const A* weight = nullptr;       // (H)
  const uint8_t* keep = nullptr;   // (G N, H) 0 or 1; null: no dropout
  A keep_scale = 1;
  A slope = 0;
  int64_t groups = 1;              // G
};

namespace cpu {

// y (G N, H), mean (G, H), rstd (G, H).
template <class T, class A>
void norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean, A* rstd,
              const Parallel& pool);

// Gradients for x (G N, H), weight (H) and bias (H), given that for y.
template <class T, class A>
void norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean,
                       const A* rstd, T* grad_x, A* grad_weight, A* grad_bias,
                       const Parallel& pool);

// The gradient of norm_act_backward, given those (up_x, up_weight, up_bias) for its results: for
// grad_y (G N, H), for x (G N, H), through the statistics too, and for weight (H). Null for up_weight
// or up_bias: zeros.
template <class T, class A>
void norm_act_double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                              const A* up_bias, const T* grad_y, const T* x, const A* mean,
                              const A* rstd, T* out_grad_y, T* out_x, A* out_weight,
                              const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
