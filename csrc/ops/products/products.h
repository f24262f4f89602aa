// Products and transposed copies of dense matrices, for shapes at which the libraries behind torch
// are slow.
//
// Legend: n rows, p and q columns; matrices are contiguous.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace mmssl::cpu {

// out (p, q) = a^T b for a (n, p) and b (n, q) with many rows and few columns, as a linear layer's
// weight gradient is. Of the product of a matrix with itself one half is computed. Sums over fixed
// blocks of rows are added in double: one order of summation whatever the number of threads.
template <class A>
void tall_product(const A* a, int64_t p, const A* b, int64_t q, int64_t n, A* out,
                  const Parallel& pool);

// out (p, p) = x^T x, multiplied and summed in double.
template <class T>
void gram(const T* x, int64_t p, int64_t n, double* out, const Parallel& pool);

// out (p, n) = x^T for elements of 2, 4 or 8 bytes.
void transpose(const void* x, int64_t n, int64_t p, int64_t element_bytes, void* out,
               const Parallel& pool);

}  // namespace mmssl::cpu
