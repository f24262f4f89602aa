// Score, mask and select in one pass on the CPU. U users, I items, B ranked users, D features.
#pragma once
#include "common/bf16.h"
#include "common/parallel.h"
#include "common/topk_args.h"

namespace mmssl::cpu {

// scores[b, :], items[b, :] = the k largest of <user_emb[users[b]], item_emb[i]> over the items i that
// the user has no edge to, largest first, equal ones by smaller i; -inf and -1 where nothing is left.
// NaN and -inf are never returned. A score is one chain of multiply-adds over the features in order,
// so it depends neither on the other users nor on the number of threads; nothing of size B x I exists.
template <class T, class A>
void masked_topk(const TopkArgs<T, A>& a, const Parallel& pool);

}  // namespace mmssl::cpu
