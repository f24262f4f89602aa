// BPR triples from uniform draws: the arguments of both devices as raw pointers, and the CPU kernel.
#pragma once
#include <cstdint>

#include "common/bf16.h"

namespace mmssl {

struct SampleArgs {
  const double* draw;         // (3, B) in [0, 1): for the users, their items, their missing items
  const int64_t* candidates;  // (n) users with at least one item and one missing item, n >= B
  const int64_t* rowptr;      // (U + 1)
  const int32_t* col;         // (E), ascending within a user
  int64_t num_candidates;     // n
  int64_t num_users;          // U
  int64_t num_items;          // I
  int64_t nnz;                // E
  int64_t batch;              // B
};

// floor(draw * count), which rounding may put at count; draw lies in [0, 1).
MMSSL_HD int64_t scaled(double draw, int64_t count) {
  const int64_t at = static_cast<int64_t>(draw * static_cast<double>(count));
  return at < count - 1 ? at : count - 1;
}

// The rank-th item that a user with `degree` ascending items lacks. items[p] - p of the missing
// items lie below items[p]; so below that item lie all items with items[p] - p <= rank.
MMSSL_HD int64_t missing_item(const int32_t* items, int64_t degree, int64_t rank) {
  int64_t low = 0, high = degree;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (items[middle] - middle <= rank) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return rank + low;
}

namespace cpu {

// Writes user, pos and neg, (B) each. Returns the first triple whose draws or user are not as
// above, or -1. Entries are checked as they are read, which costs less than a pass over the arrays.
int64_t sample_bpr(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg);

}  // namespace cpu
}  // namespace mmssl
