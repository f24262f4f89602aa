// Bayesian personalised ranking on the CPU.
#pragma once
#include "common/bpr_args.h"
#include "common/parallel.h"

namespace mmssl::cpu {

// loss and squares (one number each) and slope (B). The same bits for any number of threads and any
// SIMD level. T is float, double or bf16; A float, or double for double.
template <class T, class A>
void bpr_forward(const BprArgs<T>& a, A* loss, A* squares, A* slope, const Parallel& pool);

// grad_user (U, D) and grad_item (I, D), every row written once.
template <class T, class A>
void bpr_backward(const BprArgs<T>& a, A grad_loss, A grad_squares, const A* slope, T* grad_user,
                  T* grad_item, const Parallel& pool);

}  // namespace mmssl::cpu
