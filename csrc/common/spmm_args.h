// The operands of spmm, as every backend sees them: raw pointers, no torch type.
//
//   y[r, :] = row_scale[r] * sum_p value[edge[p]] * col_scale[col[p]] * x[col[p], :]
//
// over the positions p in [rowptr[r], rowptr[r + 1]). A null scale or value is all ones, a null edge
// the identity. R rows, C columns, E edges, D features.
#pragma once
#include <cstdint>

namespace mmssl {

// A is the type of sums, scales and values: float for float and bf16 storage, double for double.
template <class A>
struct SparseArgs {
  int64_t rows = 0;              // R
  int64_t nnz = 0;               // E
  const int64_t* rowptr = nullptr;  // (R + 1)
  const int32_t* col = nullptr;     // (E)
  const A* row_scale = nullptr;     // (R) or null
  const A* col_scale = nullptr;     // (C) or null
  const A* value = nullptr;         // (E) or null
  const int64_t* edge = nullptr;    // (E) or null
  int64_t columns = 0;              // C
};

// One product of a batch: y (R, D) = a (R, C) @ x (C, D), row-major and contiguous. T is the type x
// and y are stored in.
template <class T, class A>
struct SparseProduct {
  SparseArgs<A> a;
  const T* x = nullptr;
  T* y = nullptr;
  int64_t d = 0;
};

// Rows with more edges than this are summed in chunks of this many edges, whose sums are added in
// order. Fixed, so that the result does not depend on how many threads share the work.
inline constexpr int64_t kChunkEdges = 512;

}  // namespace mmssl
