// The operands of bpr_loss, as every backend sees them: raw pointers, no torch type.
//
//   margin_b = <user_emb[user[b]], item_emb[pos[b]] - item_emb[neg[b]]>
//   loss     = sum_b log(1 + exp(-margin_b)) / B
//   squares  = sum_b |user_emb[user[b]]|^2 + |item_emb[pos[b]]|^2 + |item_emb[neg[b]]|^2
//   slope_b  = 1 / (1 + exp(margin_b)), which is -B d loss / d margin_b
//
// U users, I items, B triples, D features.
#pragma once
#include <cstdint>

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

}  // namespace mmssl
