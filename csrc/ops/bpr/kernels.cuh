// Bayesian personalized ranking on the GPU: launchers over raw pointers. Formula: bpr.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/bpr/bpr.h"

namespace mmssl::cuda {

// Writes loss and squares (one number each) and slope (B); scratch (2, B). The same bits every
// time.
template <class T, class A>
cudaError_t launch_bpr(const BprArgs<T>& a, A* loss, A* squares, A* slope, A* scratch,
                       cudaStream_t stream);

// Writes grad_user (U, D) and grad_item (I, D), given gradients of one number each on the device.
// user_order (B): the triples, sorted stably by user. item_order (2 B): the same for the positives
// followed by the negatives.
template <class T, class A>
cudaError_t launch_bpr_backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares,
                                const A* slope, const int64_t* user_order,
                                const int64_t* item_order, T* grad_user, T* grad_item,
                                cudaStream_t stream);

}  // namespace mmssl::cuda
