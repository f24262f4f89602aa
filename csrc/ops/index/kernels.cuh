// Index arrays on the GPU: launchers over raw pointers. Definition: index.h.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/index/index.h"

namespace mmssl::cuda {

// Bytes of scratch for arrays of these sizes, aligned to 4.
int64_t index_scratch(int64_t matrices, int64_t columns, int64_t capacity);

// Both in five launches after a clearing, the same bits every time.
cudaError_t launch_index_of_rows(const RowsArgs& a, const IndexArrays& out, void* scratch,
                                 cudaStream_t stream);
cudaError_t launch_index_of_lists(const ListsArgs& a, const IndexArrays& out, void* scratch,
                                  cudaStream_t stream);

cudaError_t launch_store_lists(const StoredLists& a, cudaStream_t stream);

// scale (n) = degree ^ power of n row pointers' differences, 0 where the degree is 0; power: -1 or -1/2.
cudaError_t launch_degree_scale(const int64_t* rowptr, int64_t rows, bool root, float* scale,
                                cudaStream_t stream);

}  // namespace mmssl::cuda
