// Sparse times dense on the GPU: launchers over raw pointers. Formula: spmm.h.
#pragma once
#include <span>

#include "common/cuda_kernel.h"
#include "ops/propagate/spmm.h"

namespace mmssl::cuda {

// Rows with more edges than this are summed in chunks of this size: a small one, since the loads of a
// chunk follow each other; a larger one where the sums of many chunks would take much memory. Up to
// kChunkEdges in all need no second launch.
constexpr int64_t spmm_chunk_edges(int64_t nnz) {
  return nnz <= kChunkEdges ? kChunkEdges : nnz <= int64_t(1) << 22 ? 64 : 256;
}

// Rows of d sums that a product of nnz edges needs as scratch; 0 where no row can be long.
int64_t spmm_scratch_rows(int64_t nnz);

// Computes every product of a batch, in as few launches as their widths allow. The bits are the
// same every time, whatever the rest of the batch. scratch: spmm_scratch_rows(nnz) * d sums for
// each, in order.
cudaError_t launch_spmm(std::span<const SparseProduct<float, float>> products, float* scratch,
                        cudaStream_t stream);
cudaError_t launch_spmm(std::span<const SparseProduct<bf16, float>> products, float* scratch,
                        cudaStream_t stream);
cudaError_t launch_spmm(std::span<const SparseProduct<double, double>> products, double* scratch,
                        cudaStream_t stream);

// out[edge[p]] = row_scale[r] * col_scale[col[p]] * <g[r], x[col[p]]>; a.value is not read.
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x,
                                   float* out, int64_t d, cudaStream_t stream);
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x,
                                   float* out, int64_t d, cudaStream_t stream);
cudaError_t launch_spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x,
                                   double* out, int64_t d, cudaStream_t stream);

}  // namespace mmssl::cuda
