// Factors of similarity rows on the GPU: launchers over raw pointers. Shapes: similarity.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/similarity/similarity.h"

namespace mmssl::cuda {

template <class T>
cudaError_t launch_similarity_tables(const SimilarityTables<T>& a, cudaStream_t stream);

// Each in one launch, a warp per row; the same bits every time.
template <class T>
cudaError_t launch_similarity_factors(const SimilarityArgs<T>& a, const SimilarityFactors<T>& out,
                                      cudaStream_t stream);

template <class T>
cudaError_t launch_similarity_factors_backward(const SimilarityArgs<T>& a,
                                               const SimilarityGradient<T>& g,
                                               cudaStream_t stream);

template <class T>
cudaError_t launch_gumbel_rows(const RealRowArgs<T>& a, cudaStream_t stream);

cudaError_t launch_stack_edges(const StackedEdges& a, cudaStream_t stream);

}  // namespace mmssl::cuda
