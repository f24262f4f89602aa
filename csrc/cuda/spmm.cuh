// Sparse times dense on the GPU: launchers over raw pointers. See common/spmm_args.h for the formula.
#pragma once
#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
#include "common/cuda_launch.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "common/bf16.h"
#include "common/spmm_args.h"

namespace mmssl::cuda {

// Rows of d sums of type A that launch_spmm needs as scratch; 0 where no row can be long.
int64_t spmm_scratch_rows(int64_t nnz);

// y (R, D) = view (R, C) @ x (C, D), row-major and contiguous; the same bits every time.
cudaError_t launch_spmm(const SparseArgs<float>& a, const float* x, float* y, int64_t d,
                        float* scratch, cudaStream_t stream);
cudaError_t launch_spmm(const SparseArgs<float>& a, const bf16* x, bf16* y, int64_t d,
                        float* scratch, cudaStream_t stream);
cudaError_t launch_spmm(const SparseArgs<double>& a, const double* x, double* y, int64_t d,
                        double* scratch, cudaStream_t stream);

// out[edge[p]] = row_scale[r] * col_scale[col[p]] * <g[r], x[col[p]]>; a.value is not read.
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x,
                                   float* out, int64_t d, cudaStream_t stream);
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x,
                                   float* out, int64_t d, cudaStream_t stream);
cudaError_t launch_spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x,
                                   double* out, int64_t d, cudaStream_t stream);

}  // namespace mmssl::cuda
