// LeakyReLU, batch normalization and dropout on the GPU: launchers over raw pointers. Formula and
// shapes: norm_act.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/norm_act/norm_act.h"

namespace mmssl::cuda {

// Sums that any of the passes needs as scratch; rows of a group.
int64_t norm_act_scratch(int64_t rows, int64_t columns, int64_t groups);

// Each pass in two launches; the same bits every time.
template <class T, class A>
cudaError_t launch_norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y,
                            A* mean, A* rstd, double* scratch, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x,
                                     const A* mean, const A* rstd, T* grad_x, A* grad_weight,
                                     A* grad_bias, double* scratch, cudaStream_t stream);

template <class T, class A>
cudaError_t launch_norm_act_double_backward(const NormActArgs<A>& a, const T* up_x,
                                            const A* up_weight, const A* up_bias, const T* grad_y,
                                            const T* x, const A* mean, const A* rstd,
                                            T* out_grad_y, T* out_x, A* out_weight,
                                            double* scratch, cudaStream_t stream);

// What the statistics of G groups change in the running ones, one after the other.
template <class A>
struct RunningArgs {
  int64_t columns, rows, groups;  // H, N, G
  double momentum, eps;
  const A *mean, *rstd;                // (G, H), of the batch
  A *running_mean, *running_var;       // (H), updated in place
};

// One launch.
template <class A>
cudaError_t launch_norm_act_running(const RunningArgs<A>& a, cudaStream_t stream);

}  // namespace mmssl::cuda
