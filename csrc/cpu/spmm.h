// Sparse times dense on the CPU. See common/spmm_args.h for the formula.
#pragma once
#include "common/bf16.h"
#include "common/parallel.h"
#include "common/spmm_args.h"

namespace mmssl::cpu {

// y (R, D) = view (R, C) @ x (C, D), row-major and contiguous. Same bits for the same input,
// whatever the number of threads or the SIMD level.
void spmm(const SparseArgs<float>& a, const float* x, float* y, int64_t d, const Parallel& pool);
void spmm(const SparseArgs<float>& a, const bf16* x, bf16* y, int64_t d, const Parallel& pool);
void spmm(const SparseArgs<double>& a, const double* x, double* y, int64_t d, const Parallel& pool);

// Gradient of spmm for its values: out[edge[p]] = row_scale[r] * col_scale[col[p]] * <g[r], x[col[p]]>
// with g (R, D) the gradient of y. a.value is not read.
void spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x, float* out,
                     int64_t d, const Parallel& pool);
void spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x, float* out,
                     int64_t d, const Parallel& pool);
void spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x, double* out,
                     int64_t d, const Parallel& pool);

}  // namespace mmssl::cpu
