// The operands of masked_topk, as every backend sees them: raw pointers, no torch type.
#pragma once
#include <cstdint>

namespace mmssl {

// T is the type of the embeddings, A that of the scores: float for float and bf16, else double.
template <class T, class A>
struct TopkArgs {
  int64_t num_users, num_items, batch, d, k;  // U, I, B, D, length of the lists
  const T* user_emb;      // (U, D)
  const T* item_emb;      // (I, D)
  const int64_t* users;   // (B) or null: all of them in order
  const int64_t* rowptr;  // (U + 1) or null: nothing is excluded
  const int32_t* col;     // (E)
  A* scores;              // (B, k)
  int64_t* items;         // (B, k)
};

}  // namespace mmssl
