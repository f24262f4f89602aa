// What the sums over the rows of a column give: its statistics, and the factors of the results.
// Shared by both devices. The rows are cut into chunks, each with its own sums, which are added in
// order.
#pragma once
#include "common/bf16.h"

namespace mmssl {

// The sums of one column, by chunks, from the first of its numbers in (chunks, sums, H) totals.
class ChunkSums {
 public:
  MMSSL_HD ChunkSums(const double* totals, int64_t chunks, int64_t sums, int64_t columns,
                     int64_t column)
      : totals_(totals + column), chunks_(chunks), sums_(sums), columns_(columns) {}
  MMSSL_HD int64_t chunks() const { return chunks_; }
  MMSSL_HD double operator()(int64_t chunk, int64_t sum) const {
    return totals_[(chunk * sums_ + sum) * columns_];
  }
  MMSSL_HD double all(int64_t sum) const {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) total += (*this)(chunk, sum);
    return total;
  }

 private:
  const double* totals_;
  int64_t chunks_, sums_, columns_;
};

struct Moments {
  double mean, variance;
};

// From sum 0, the deviations from the chunk's first number, origin(chunk), and sum 1, their squares:
// such sums cancel less than those of the numbers themselves. Chunks have chunk_rows rows, but the
// last.
template <class Origin>
MMSSL_HD Moments moments(const ChunkSums& sums, int64_t rows, int64_t chunk_rows,
                         const Origin& origin) {
  const auto rows_of = [&](int64_t chunk) {
    const int64_t left = rows - chunk * chunk_rows;
    return double(left < chunk_rows ? left : chunk_rows);
  };
  if (sums.chunks() == 0) return {0, 0 / double(rows)};  // no rows: the variance is NaN
  const double first = origin(0);
  double total = 0, squares = 0;
  for (int64_t c = 0; c < sums.chunks(); ++c) {
    total += sums(c, 0) + rows_of(c) * (origin(c) - first);
  }
  const double mean = first + total / double(rows);
  for (int64_t c = 0; c < sums.chunks(); ++c) {
    const double off = mean - origin(c);
    squares += sums(c, 1) + off * (rows_of(c) * off - 2 * sums(c, 0));
  }
  // Not below zero despite rounding, and still NaN where a number was NaN.
  return {mean, (squares < 0 ? 0 : squares) / double(rows)};
}

// The gradient of norm_act_backward. With g = keep * keep_scale * grad_y, l = leaky'(x) * up_x, m()
// the mean over the rows, c1 = m(g), c2 = m(g xhat), w the weight and r = rstd, norm_act_backward is
//   grad_a = w r (g - c1 - xhat c2),  grad_weight = N c2,  grad_bias = N c1.
// Its gradient for g is the same projection of l. That for xhat is
//   e = -w r c2 l - q g,  q = w r m(l xhat) - up_weight,
// and xhat = (a - mean) r depends on a as in the forward, r alone as r' = -r^2 xhat / N.
struct SecondFactors {
  double weight;    // that for the weight
  double own[7];    // that for g is own[0] l + own[1] + own[2] xhat
                    // that for a: own[3] l + own[4] g + own[5] + own[6] xhat
};

// From the sums of g, g xhat, l, l xhat and l g.
MMSSL_HD SecondFactors second_factors(const ChunkSums& sums, double n, double w, double r,
                                      double up_weight, double up_bias) {
  const double c1 = sums.all(0) / n, c2 = sums.all(1) / n;
  const double l1 = sums.all(2) / n, l2 = sums.all(3) / n, lg = sums.all(4) / n;
  const double q = w * r * l2 - up_weight;
  const double product = lg - c1 * l1 - c2 * l2;  // m(l grad_a) / (w r)
  const double e1 = -w * r * c2 * l1 - q * c1, e2 = -w * r * c2 * l2 - q * c2;
  return {n * r * product,
          {w * r, up_bias - w * r * l1, up_weight - w * r * l2, -w * r * r * c2, -r * q, -r * e1,
           -r * (e2 + w * r * product)}};
}

}  // namespace mmssl
