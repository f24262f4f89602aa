// propagate_layers on the GPU: its products are those of ops/propagate/kernels.cuh.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/propagate/kernels.cuh"
#include "ops/propagate_layers/layers.h"

namespace mmssl::cuda {

// y = factor * x, n numbers.
template <class T, class A>
cudaError_t launch_scaled(const T* x, T* y, int64_t n, A factor, cudaStream_t stream);

// Sums that the products of one hop need as scratch, in the type of sums.
template <class A>
int64_t hop_scratch(const Layers<A>& m) {
  return (spmm_scratch_rows(m.ui.nnz) + spmm_scratch_rows(m.iu.nnz)) * m.d;
}

}  // namespace mmssl::cuda
