// What lies between the products and the normalized layers of a critic's pass over its rows
// (mmssl/ops/_critic.py): the arguments of the kernels as raw pointers. G groups of n rows: fake, real
// and mixed ones. T stores rows, A is the type of numbers per row and of sums.
#pragma once
#include <cstdint>

namespace mmssl {

// The score is kScoreScale times a sigmoid, the penalty kPenaltyScale times a mean.
inline constexpr double kScoreScale = 100.0;
inline constexpr double kPenaltyScale = 0.3;

// Row i of the fake group is pre[i] + bias, that of the real group pre[n + i % B] + bias, that of the
// mixed group lies between them. n is a multiple of B.
template <class T, class A>
struct GroupedRows {
  int64_t groups, rows, batch, columns;  // G, n, B, h
  const T* pre;                          // (n + B, h)
  const A* bias;                         // (h)
  const A* alpha;                        // (n) shares of the real row; null where G < 3
  T* out;                                // (G n, h)
};

template <class T, class A>
struct UngroupedRows {
  int64_t groups, rows, batch, columns;
  const T* grad;   // (G n, h)
  const A* alpha;  // (n), or null
  T* out;          // (n + B, h): the gradient for pre
};

// The last layer: share, the sigmoids of y weight + bias, slope, the derivatives of the scores, and for
// the last rows the gradients of their scores for y.
template <class T, class A>
struct Scores {
  int64_t count, columns, last;  // G n, h2, rows with a gradient
  const T* y;                    // (G n, h2)
  const A *weight, *bias;        // (h2) and (1)
  A *share, *slope;              // (G n)
  T* to_y;                       // (last, h2)
};

// norm: the square root of <image, other> of each row, and of the smallest normal number at least;
// factor: twice the derivative of the penalty with respect to the square.
template <class T, class A>
struct RowNorms {
  int64_t rows, columns;   // n
  const T *image, *other;  // (n, columns)
  A *norm, *factor;        // (n)
};

// loss = E[D(fake)] - E[D(real)] + weight * penalty, and its terms; with one group: E[D(fake)].
template <class A>
struct LossTerms {
  int64_t groups, rows;
  const A* share;  // (G n)
  const A* norm;   // (n), or null without a penalty
  A weight;
  A* out;          // (4): the loss, then the terms
};

// Rows times grad * weight * factor of the row.
template <class T, class A>
struct ScaledRows {
  int64_t rows, columns;
  const A *grad, *factor;  // (1) and (n)
  A weight;
  const T *first, *second;  // (n, columns); the second may be null
  T *out_first, *out_second;
};

// The gradient for the logits, grad / n times the slope, negated in the real group, and for y, which is
// the weight times it. In the mixed group it comes from `up`, the gradient for Scores::to_y.
template <class T, class A>
struct LogitGradient {
  int64_t groups, rows, columns;
  const A *grad, *share, *slope;  // (1), (G n), (G n)
  const T* up;                    // (n, h2), or null where G < 3
  const A* weight;                // (h2)
  A* to_logit;                    // (G n)
  T* to_y;                        // (G n, h2)
};

// The gradients for the last layer's parameters.
template <class T, class A>
struct LastGradient {
  int64_t groups, rows, columns;
  const A *to_logit, *slope;  // (G n)
  const T *y, *up;            // (G n, h2), and (n, h2) or null, as above
  A *to_weight, *to_bias;     // (h2) and (1)
};

}  // namespace mmssl
