// BPR triples from uniform draws, on the CPU.
#pragma once
#include <cstdint>

namespace mmssl::cpu {

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

// Writes user, pos and neg, (B) each. Returns the first triple whose draws or user are not as
// above, or -1. Entries are checked as they are read, which costs less than a pass over the arrays.
int64_t sample_bpr(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg);

}  // namespace mmssl::cpu
