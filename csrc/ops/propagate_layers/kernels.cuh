// propagate_layers on the GPU: its products are those of ops/propagate/kernels.cuh.
#pragma once
#include "ops/propagate/kernels.cuh"
#include "ops/propagate_layers/layers.h"

namespace mmssl::cuda {

// Sums that the products of one hop need as scratch.
template <class A>
int64_t hop_scratch(const Layers<A>& m) {
  return (spmm_scratch_rows(m.ui.nnz) + spmm_scratch_rows(m.iu.nnz)) * m.d;
}

}  // namespace mmssl::cuda
