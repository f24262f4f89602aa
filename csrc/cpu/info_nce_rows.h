// What InfoNCE does once per row: norms, the transposed panels, and the way back through the
// normalisation. Legend as in info_nce.h.
#pragma once
#include <cmath>
#include <type_traits>

#include "cpu/simd.h"

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

// ||x||, at least the eps of torch.nn.functional.normalize.
template <class T>
MMSSL_INLINE double clamped_norm(const T* x, int64_t d) {
  const double norm = std::sqrt(dot_in_double(x, x, d));
  return norm < 1e-12 ? 1e-12 : norm;
}

// z (rows, ld, zero-padded) = the rows of x (rows, d) over their norms, which go to norm.
template <class A, int L>
MMSSL_INLINE void normalise_rows(const A* x, int64_t rows, int64_t d, int64_t ld, A* z,
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

// One step of transposing an L x L block held in L vectors: swaps off-diagonal blocks of kStep.
template <class A, int L, int kStep>
MMSSL_INLINE void transpose_step(Vec<A, L> (&v)[L]) {
  using Index = Vec<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>, L>;
  Index low, high;
  for (int lane = 0; lane < L; ++lane) {
    const bool second = (lane & kStep) != 0;
    low[lane] = second ? L + lane - kStep : lane;
    high[lane] = second ? L + lane : lane + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & kStep) continue;
    const Vec<A, L> a = v[i], b = v[i + kStep];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + kStep] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * kStep < L) transpose_step<A, L, 2 * kStep>(v);
}

// out (panels, d, kPanel) from z (rows, ld), ld a multiple of L, rows of kPanel: a panel holds
// kPanel rows, transposed.
template <class A, int L, int kPanel>
MMSSL_INLINE void make_panels(const A* z, int64_t rows, int64_t d, int64_t ld, A* out) {
  for (int64_t j = 0; j < rows; j += L) {
    A* const panel = out + j / kPanel * kPanel * d + j % kPanel;
    for (int64_t k = 0; k < d; k += L) {
      Vec<A, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load<A, L>(z + (j + i) * ld + k);
      transpose_step<A, L, 1>(block);
      if (k + L <= d) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store<A, L>(panel + (k + i) * kPanel, block[i]);
      } else {
        for (int64_t i = 0; k + i < d; ++i) store<A, L>(panel + (k + i) * kPanel, block[i]);
      }
    }
  }
}

// The gradient dz (d) of a normalised row z of norm `norm`, plus weight * other: returns <z, dz>, and
// writes the gradient of the row itself, times scale, to out unless that is null. dz is overwritten.
template <class A, int L>
MMSSL_INLINE double through_norm(const A* z, const A* other, A weight, A* dz, double norm,
                                 double scale, int64_t d, A* out) {
  int64_t k = 0;
  if (other != nullptr) {
    for (; k + L <= d; k += L) {
      store<A, L>(dz + k, load<A, L>(dz + k) + load<A, L>(other + k) * weight);
    }
    for (; k < d; ++k) dz[k] += weight * other[k];
  }
  const double along = dot_in_double(z, dz, d);
  if (out == nullptr) return along;
  const A radial = A(norm > 1e-12 ? along : 0.0), factor = A(scale / norm);
  for (k = 0; k + L <= d; k += L) {
    store<A, L>(out + k, (load<A, L>(dz + k) - load<A, L>(z + k) * radial) * factor);
  }
  for (; k < d; ++k) out[k] = (dz[k] - radial * z[k]) * factor;
  return along;
}

}  // namespace mmssl::cpu
