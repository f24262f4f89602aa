// Bayesian personalised ranking on the GPU: launchers over raw pointers. Formula: common/bpr_args.h.
#pragma once
#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
#include "common/cuda_launch.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "common/bf16.h"
#include "common/bpr_args.h"

namespace mmssl::cuda {

// loss and squares (one number each) and slope (B); scratch (2, B). The same bits every time.
template <class T, class A>
cudaError_t launch_bpr(const BprArgs<T>& a, A* loss, A* squares, A* slope, A* scratch,
                       cudaStream_t stream);

// grad_user (U, D) and grad_item (I, D), of gradients that are one number each on the device.
// user_order (B): the triples, sorted stably by user. item_order (2 B): the same for the positives
// followed by the negatives.
template <class T, class A>
cudaError_t launch_bpr_backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares,
                                const A* slope, const int64_t* user_order,
                                const int64_t* item_order, T* grad_user, T* grad_item,
                                cudaStream_t stream);

}  // namespace mmssl::cuda
