// Bayesian personalized ranking: the arguments of both devices as raw pointers, and the CPU
// kernels.
//
//   margin_b = <user_emb[user[b]], item_emb[pos[b]] - item_emb[neg[b]]>
//   loss     = sum_b log(1 + exp(-margin_b)) / B
//   squares  = sum_b |user_emb[user[b]]|^2 + |item_emb[pos[b]]|^2 + |item_emb[neg[b]]|^2
//   slope_b  = 1 / (1 + exp(margin_b)), which is -B d loss / d margin_b
//
// U users, I items, B triples, D features.
#pragma once
#include <cstdint>

#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl {

template <class T>
struct BprArgs {
  const T* user_emb;    // (U, D)
  const T* item_emb;    // (I, D)
  const int64_t* user;  // (B)
  const int64_t* pos;   // (B)
  const int64_t* neg;   // (B)
  int64_t users;        // U
  int64_t items;        // I
  int64_t batch;        // B
  int64_t d;            // D
};

namespace cpu {

// Writes loss and squares (one number each) and slope (B). The bits depend neither on the number of
// threads nor on the SIMD level. T is float, double or bf16; A float, or double for double.
template <class T, class A>
void bpr_forward(const BprArgs<T>& a, A* loss, A* squares, A* slope, const Parallel& pool);

// Writes grad_user (U, D) and grad_item (I, D), every row once.
template <class T, class A>
void bpr_backward(const BprArgs<T>& a, A grad_loss, A grad_squares, const A* slope, T* grad_user,
                  T* grad_item, const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
