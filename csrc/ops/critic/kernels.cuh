// The elementwise part of a critic's pass on the GPU: launchers over raw pointers, one launch each.
// Formulas and shapes: critic.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/critic/critic.h"

namespace mmssl::cuda {

// Rows of groups from those of a product, and the gradient of that.
template <class T, class A>
cudaError_t launch_grouped_rows(const GroupedRows<T, A>& a, cudaStream_t stream);
template <class T, class A>
cudaError_t launch_ungrouped_rows(const UngroupedRows<T, A>& a, cudaStream_t stream);

// The last layer, and its gradients.
template <class T, class A>
cudaError_t launch_scores(const Scores<T, A>& a, cudaStream_t stream);
template <class T, class A>
cudaError_t launch_logit_gradient(const LogitGradient<T, A>& a, cudaStream_t stream);
template <class T, class A>
cudaError_t launch_last_gradient(const LastGradient<T, A>& a, cudaStream_t stream);

// The penalty and the terms of the loss.
template <class A>
cudaError_t launch_loss_terms(const LossTerms<A>& a, cudaStream_t stream);
template <class T, class A>
cudaError_t launch_row_norms(const RowNorms<T, A>& a, cudaStream_t stream);
template <class T, class A>
cudaError_t launch_scaled_rows(const ScaledRows<T, A>& a, cudaStream_t stream);

}  // namespace mmssl::cuda
