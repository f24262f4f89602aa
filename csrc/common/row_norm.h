// Norms of rows, rows divided by their norms, and the gradient through that division.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>

#include "common/buffer.h"
#include "common/simd.h"

namespace mmssl::cpu {

// sum_k a_k b_k in double, eight sums at a time. T is float or double.
template <class T>
MMSSL_INLINE double dot_in_double(const T* a, const T* b, int64_t d) {
  using Wide = Vec<double, 8>;
  Wide sums{};
  int64_t k = 0;
  for (; k + 8 <= d; k += 8) {
    sums += __builtin_convertvector(load<T, 8>(a + k), Wide) *
            __builtin_convertvector(load<T, 8>(b + k), Wide);
  }
  double sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += sums[lane];
  for (; k < d; ++k) sum += double(a[k]) * double(b[k]);
  return sum;
}

// The norm of x, at least the eps of torch.nn.functional.normalize.
template <class T>
MMSSL_INLINE double clamped_norm(const T* x, int64_t d) {
  const double norm = std::sqrt(dot_in_double(x, x, d));
  return norm < 1e-12 ? 1e-12 : norm;
}

// z (rows, ld, zero-padded) = the rows of x (rows, d) over their norms, which go to norm.
template <class A, int L>
MMSSL_INLINE void normalize_rows(const A* x, int64_t rows, int64_t d, int64_t ld, A* z,
                                 double* norm) {
  for (int64_t i = 0; i < rows; ++i, x += d, z += ld) {
    norm[i] = clamped_norm(x, d);
    // 1 / norm in two parts: multiplying is faster than dividing, and one part loses a bit.
    const double inverse = 1 / norm[i];
    const A high = A(inverse), low = A(inverse - double(high));
    int64_t k = 0;
    for (; k + L <= d; k += L) {
      const Vec<A, L> v = load<A, L>(x + k);
      store<A, L>(z + k, v * high + v * low);
    }
    for (; k < d; ++k) z[k] = x[k] * high + x[k] * low;
    for (; k < ld; ++k) z[k] = 0;
  }
}

// z (rows, width, zero-padded) = the rows of x (rows, d) times a power of two, so that their norms
// lie in [1, 2). norm receives the norms of x, and inverse 1 / the norms of z.
MMSSL_INLINE void scale_rows(const bf16* x, int64_t rows, int64_t d, int64_t width, bf16* z,
                             double* norm, float* inverse) {
  constexpr int L = 16;
  using Half = Vec<uint16_t, L>;
  Buffer<float> wide(width);
  std::fill_n(wide.get(), width, 0.0f);
  for (int64_t i = 0; i < rows; ++i, x += d, z += width) {
    for (int64_t k = 0; k < d; ++k) wide.get()[k] = to_float(x[k]);
    norm[i] = clamped_norm(wide.get(), d);
    // norm = fraction * 2^exponent, fraction in [1, 2), read from its bits, once per row.
    const auto bits = std::bit_cast<uint64_t>(norm[i]);
    const bool finite = std::isfinite(norm[i]);
    const int exponent = finite ? int(bits >> 52) - 1023 : 0;
    if (finite) inverse[i] = float(std::bit_cast<double>(uint64_t(1023 + exponent) << 52) / norm[i]);
    const float factor = float(std::bit_cast<double>(uint64_t(1023 - exponent) << 52));
    for (int64_t k = 0; k < width; k += L) {
      const auto words = round_to_bf16<L>(load<float, L>(wide.get() + k) * factor) >> 16;
      const Half halves = __builtin_convertvector(words, Half);
      __builtin_memcpy(z + k, &halves, sizeof(halves));
    }
  }
}

// sum (d) += weight * row.
template <class A, int L>
MMSSL_INLINE void add_row(const A* row, A weight, int64_t d, A* sum) {
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    store<A, L>(sum + k, load<A, L>(sum + k) + load<A, L>(row + k) * weight);
  }
  for (; k < d; ++k) sum[k] += weight * row[k];
}

// The gradient dz (d) of a normalized row z of norm `norm`: returns <z, dz>, and writes the
// gradient of the row itself, times scale, to out unless that is null.
template <class A, int L>
MMSSL_INLINE double through_norm(const A* z, const A* dz, double norm, double scale, int64_t d,
                                 A* out) {
  const double along = dot_in_double(z, dz, d);
  if (out == nullptr) return along;
  const A radial = A(norm > 1e-12 ? along : 0.0), factor = A(scale / norm);
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    store<A, L>(out + k, (load<A, L>(dz + k) - load<A, L>(z + k) * radial) * factor);
  }
  for (; k < d; ++k) out[k] = (dz[k] - radial * z[k]) * factor;
  return along;
}

}  // namespace mmssl::cpu
