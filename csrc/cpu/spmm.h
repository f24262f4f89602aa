// Sparse times dense on the CPU. See common/spmm_args.h for the formula.
#pragma once
#include <span>

#include "common/bf16.h"
#include "common/parallel.h"
#include "common/spmm_args.h"

namespace mmssl::cpu {

// Both look at the index as they go: false if an entry of col is not in [0, C) or one of edge not in
// [0, E). Nothing is read through it, and the results are then of no use. rowptr is the caller's to
// check.

// Every product of a batch, in one parallel region. Same bits for the same input, whatever the number
// of threads, the SIMD level and the rest of the batch.
bool spmm(std::span<const SparseProduct<float, float>> products, const Parallel& pool);
bool spmm(std::span<const SparseProduct<bf16, float>> products, const Parallel& pool);
bool spmm(std::span<const SparseProduct<double, double>> products, const Parallel& pool);

// Gradient of spmm for its values: out[edge[p]] = row_scale[r] * col_scale[col[p]] * <g[r], x[col[p]]>
// with g (R, D) the gradient of y. a.value is not read.
bool spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x, float* out,
                     int64_t d, const Parallel& pool);
bool spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x, float* out,
                     int64_t d, const Parallel& pool);
bool spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x, double* out,
                     int64_t d, const Parallel& pool);

}  // namespace mmssl::cpu
