// LeakyReLU, batch normalization and dropout on the GPU: launchers over raw pointers. Formula and
// shapes: norm_act.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/norm_act/norm_act.h"

namespace mmssl::cuda {

// Sums that any of the passes needs as scratch; rows of a group.
int64_t norm_act_scratch(int64_t rows, int64_t columns, int64_t groups);

// Running statistics, which the statistics of the groups move one after the other; null without them.
template <class A>
struct Running {
  A *mean = nullptr, *var = nullptr;  // (H), updated in place
  int64_t* count = nullptr;           // of groups seen, or null
  double momentum = 0;
};

// Each pass in one launch, two for many rows; the same bits every time.
template <class T, class A>
cudaError_t launch_norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y,
                            A* mean, A* rstd, double* scratch, cudaStream_t stream,
                            const Running<A>& running = {});

template <class T, class A>
cudaError_t launch_norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x,
                                     const A* mean, const A* rstd, T* grad_x, A* grad_weight,
                                     A* grad_bias, double* scratch, cudaStream_t stream);

// The backward with more added: more_x (N, H) to the last group's grad_x, more_weight (H) to grad_weight;
// either may be null. sum_x (H): the sums of grad_x over all rows.
template <class T, class A>
cudaError_t launch_norm_act_added(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean,
                                  const A* rstd, const T* more_x, const A* more_weight, T* grad_x,
                                  A* grad_weight, A* grad_bias, A* sum_x, double* scratch,
                                  cudaStream_t stream);

template <class T, class A>
cudaError_t launch_norm_act_double_backward(const NormActArgs<A>& a, const T* up_x,
                                            const A* up_weight, const A* up_bias, const T* grad_y,
                                            const T* x, const A* mean, const A* rstd,
                                            T* out_grad_y, T* out_x, A* out_weight,
                                            double* scratch, cudaStream_t stream);

}  // namespace mmssl::cuda
