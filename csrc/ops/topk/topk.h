// Score, mask and select in one pass: the arguments of both devices as raw pointers, and the CPU
// kernel. U users, I items, B ranked users, D features.
#pragma once
#include <cstdint>

#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl {

// T is the type of the embeddings, A that of the scores: float for float and bf16, else double.
template <class T, class A>
struct TopkArgs {
  int64_t num_users, num_items, batch, d, k;  // U, I, B, D, length of the lists
  const T* user_emb;      // (U, D)
  const T* item_emb;      // (I, D)
  const int64_t* users;   // (B) or null: all of them in order
  const int64_t* rowptr;  // (U + 1) or null: no item is excluded
  const int32_t* col;     // (E)
  A* scores;              // (B, k)
  int64_t* items;         // (B, k)
};

namespace cpu {

// scores[b, :], items[b, :] = the k largest of <user_emb[users[b]], item_emb[i]> over the items i
// that the user has no edge to, largest first, ties by smaller i; -inf and -1 where no item is
// left. NaN and -inf are never returned. A score is one chain of multiply-adds over the features in
// order, so it depends neither on the other users nor on the number of threads; nothing of size B x
// I exists.
template <class T, class A>
void masked_topk(const TopkArgs<T, A>& a, const Parallel& pool);

}  // namespace cpu
}  // namespace mmssl
