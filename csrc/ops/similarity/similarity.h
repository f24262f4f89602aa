// Rows of masked similarities as factors (mmssl/ops/masked_similarity.py): the arguments of the
// kernels as raw pointers. K blocks of B rows share the edges of one batch.
#pragma once
#include <cstdint>

namespace mmssl {

// A squared length below this share of the unmasked one is rounding error only.
inline constexpr double kRoundingShare = 1e-12;
inline constexpr double kSmallestNorm = 1e-12;
// The released Gumbel draw adds this inside both logarithms.
inline constexpr double kLogEps = 1e-8;

// The edges of a batch by row. The arrays of edges may be longer than rowptr[B].
struct BatchRows {
  int64_t rows;           // B
  int64_t capacity;       // n, the length of the arrays of edges
  const int64_t* rowptr;  // (B + 1)
  const int32_t* col;     // (n)
};

// What the factors of K pairs of tables read, in one place. T is float or double.
template <class T>
struct SimilarityTables {
  static constexpr int64_t kMost = 8;
  int64_t blocks, rows, items, d;            // K, B, I, D
  const int64_t* users;                      // (B)
  const T *user[kMost], *item[kMost];        // (U, D) and (I, D), whose rows are a step apart
  int64_t user_step[kMost], item_step[kMost];
  T *out_user, *out_item;                    // (K, B, D) and (I, K, D)
  double *wide_user, *wide_item;             // (K, B, D) and (K, I, D)
};

template <class T>
struct SimilarityArgs {
  BatchRows edges;
  int64_t blocks;         // K
  int64_t d;              // D
  const T* user;          // (K, B, D)
  const T* item;          // (K, I, D), with the strides that follow
  int64_t item_block, item_row;
  const double* through;  // (K, B, D): user @ (item.T @ item)
};

template <class T>
struct SimilarityFactors {
  T* left;    // (K, B, D): scale * user
  T* value;   // (K, n): -scale * masked, 0 behind the edges
  T* masked;  // (K, n): <user, item> of the edges, 0 behind them
  T* scale;   // (K, B): 1 / length of the row, 0 for a row of rounding errors
};

template <class T>
struct SimilarityGradient {
  const T *to_left, *to_value;  // as left and value
  const T *masked, *scale;      // as above
  T* to_user;                   // (K, B, D)
  T* to_masked;                 // (K, n), 0 behind the edges
  T* weighted;                  // (K, B, D): user times the gradient of its squared length, twice it
};

// normalize(softmax(gumbel / tau) on the edges + zeta * similarity) of B rows, which it overwrites.
template <class T>
struct RealRowArgs {
  BatchRows edges;
  int64_t d;
  const T* uniform;        // (n)
  T *left, *value;         // (B, D) and (n), of the similarity
  T tau, noise, zeta;
};

// K copies of the edges of a batch, one below the other: an index of (K B, C).
struct StackedEdges {
  BatchRows edges;
  int64_t blocks, columns;              // K, C
  const int64_t* t_rowptr;              // (C + 1)
  const int32_t* t_col;                 // (n)
  const int64_t* t_edge;                // (n)
  int64_t *out_rowptr, *out_t_rowptr;   // (K B + 1) and (C + 1)
  int32_t *out_col, *out_t_col;         // (K n)
  int64_t *out_edge, *out_t_edge;       // (K n): positions of values (K, n)
};

}  // namespace mmssl
