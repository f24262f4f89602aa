// out = base + weight * sum_m x_m / max(|x_m|, eps), row by row, and its gradient.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace mmssl {

// M views of N rows of D features. Row n of view m of x (and of its gradient) starts at
// m * view_step + n * row_step.
struct NormalizedSize {
  int64_t views, rows, dim, view_step, row_step;
};

namespace cpu {

// inverse (M, N): 1 / max(|x_m|, eps), negative where eps was the larger.
template <class T, class A>
void add_normalized(const NormalizedSize& size, const T* base, const T* x, A weight, T* out,
                    A* inverse, const Parallel& pool);

template <class T, class A>
void add_normalized_backward(const NormalizedSize& size, const T* grad, const T* x,
                             const A* inverse, A weight, T* grad_x, const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
