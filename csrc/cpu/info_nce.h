// InfoNCE on cosine similarities on the CPU; no N x N matrix is ever held. Legend: B independent
// (anchor, positive) pairs, N rows, K shared negatives, D features.
//
//   s12_ij = <a_i, p_j>, s11_ij = <a_i, a_j>, s1n_ik = <a_i, n_k>   (rows normalised, eps 1e-12)
//   lse_i  = log(sum_j exp(s12_ij / t) + sum_{j != i} exp(s11_ij / t) + sum_k exp(s1n_ik / t))
//   loss_i = -log(exp(s12_ii / t - lse_i) + eps)
//
// symmetric: the mean of this and of the same with a and p swapped.
#pragma once
#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl::cpu {

struct InfoNceArgs {
  int64_t pairs, n, k, d;  // B, N, K, D
  bool intra_view, symmetric;
  double temperature, eps;

  int directions() const { return symmetric ? 2 : 1; }
};

// T as stored, A as summed: (float, float), (bf16, float) or (double, double). All row-major and
// contiguous; anchor, positive and their gradients (B, N, D), negatives (K, D) or null.
//
// Forward writes loss (B, N) and saved (directions + 1, B, N): lse of each direction, then s12_ii.
template <class T, class A>
void info_nce_forward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                      A* loss, double* saved, const Parallel& pool);

// Backward takes grad (B, N), the gradient of loss. Every row of a result is summed in one fixed
// order, so the bits do not depend on the number of threads. grad_negatives may be null.
template <class T, class A>
void info_nce_backward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                       const double* saved, const A* grad, T* grad_anchor, T* grad_positive,
                       T* grad_negatives, A* grad_temperature, const Parallel& pool);

}  // namespace mmssl::cpu
