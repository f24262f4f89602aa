// Sparse times dense: the arguments of both devices as raw pointers, and the CPU kernels.
//
//   y[r, :] = row_scale[r] * sum_p value[edge[p]] * col_scale[col[p]] * x[col[p], :]
//
// over the positions p in [rowptr[r], rowptr[r + 1]). A null scale or value is all ones, a null
// edge is the identity. R rows, C columns, E edges, D features.
#pragma once
#include <span>

#include "common/bf16.h"
#include "common/parallel.h"

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

// Adam with bias corrections, for a table of parameters on the CPU. Kingma, Ba: "Adam: A Method for
// Stochastic Optimization", ICLR 2015. The moments lie as the parameters do.
template <class A>
struct Adam {
  A* mean = nullptr;    // (R, D)
  A* square = nullptr;  // (R, D)
  A rate = 0;           // lr / (1 - beta1^t) in step t
  A root = 1;           // 1 / sqrt(1 - beta2^t)
  A share = 0;          // 1 - beta1, of the gradient in the first moment
  A kept = 0;           // beta2
  A square_share = 0;   // 1 - beta2
  A eps = 0;
};

// What becomes of a finished row r of the product: scale * factor[r] * (base[r] + row). A null factor
// is all ones; a null base leaves the row as it is.
template <class T, class A>
struct Epilogue {
  const T* base = nullptr;    // (R, D), rows base_stride apart
  int64_t base_stride = 0;
  const A* factor = nullptr;  // (R) or null
  A scale = 1;
  const int32_t* base_row = nullptr;  // CPU only: (R) the row of base that stands for base[r], or null
  Adam<A> adam{};  // CPU only: with moments, the rows are the gradient of y, which is updated
};

// One product of a batch: y (R, D) = a (R, C) @ x (C, D), row-major. T is the type x and y are
// stored in. A stride is the distance of two rows; y overlaps neither x nor base.
template <class T, class A>
struct SparseProduct {
  SparseArgs<A> a;
  const T* x = nullptr;
  T* y = nullptr;
  int64_t d = 0;
  int64_t x_stride = d, y_stride = d;
  Epilogue<T, A> epilogue{};
};

// Rows with more edges than this are summed in chunks of this many edges, whose sums are added in
// order. Fixed, so that the result does not depend on how many threads share the work.
inline constexpr int64_t kChunkEdges = 512;

namespace cpu {

// Both check the index as they read it and return false if an entry of col lies outside [0, C) or
// one of edge outside [0, E). Nothing is read through such an entry, and the results are then
// undefined. The caller has checked rowptr.

// Every product of a batch, in one parallel region. The bits depend neither on the number of
// threads nor on the SIMD level or the rest of the batch.
bool spmm(std::span<const SparseProduct<float, float>> products, const Parallel& pool);
bool spmm(std::span<const SparseProduct<bf16, float>> products, const Parallel& pool);
bool spmm(std::span<const SparseProduct<double, double>> products, const Parallel& pool);

// Gradient of spmm for its values: out[edge[p]] = row_scale[r] * col_scale[col[p]] * <g[r],
// x[col[p]]> with g (R, D) the gradient of y. a.value is not read.
bool spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x, float* out,
                     int64_t d, const Parallel& pool);
bool spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x, float* out,
                     int64_t d, const Parallel& pool);
bool spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x, double* out,
                     int64_t d, const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
