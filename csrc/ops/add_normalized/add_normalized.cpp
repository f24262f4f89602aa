#include "ops/add_normalized/add_normalized.h"

#include <algorithm>
#include <cmath>

#include "common/dot.h"

namespace mmssl::cpu {
namespace {

constexpr int64_t kTaskRows = 512;
constexpr int64_t kFeatures = 64;  // summed over the views at a time
constexpr double kEps = 1e-12;  // of torch.nn.functional.normalize

template <class T, class A>
struct Forward {
  NormalizedSize size;
  const T *base, *x;
  A weight;
  T* out;
  A* inverse;

  template <int kLanes>
  MMSSL_INLINE void rows(int64_t begin, int64_t end) const {
    const int64_t d = size.dim;
    for (int64_t n = begin; n < end; ++n) {
      const T* row = x + n * size.row_step;
      for (int64_t m = 0; m < size.views; ++m) {
        const T* v = row + m * size.view_step;
        const A norm = std::sqrt(dot<T, A, kLanes>(v, v, d));
        inverse[m * size.rows + n] = norm > A(kEps) ? 1 / norm : -1 / A(kEps);
      }
      for (int64_t k = 0; k < d; k += kFeatures) {
        const int64_t width = std::min(kFeatures, d - k);
        A sum[kFeatures] = {};
        for (int64_t m = 0; m < size.views; ++m) {
          const A inv = std::abs(inverse[m * size.rows + n]);
          const T* v = row + m * size.view_step + k;
          for (int64_t i = 0; i < width; ++i) sum[i] += widen(v[i]) * inv;
        }
        const int64_t at = n * d + k;
        for (int64_t i = 0; i < width; ++i) {
          narrow(widen(base[at + i]) + weight * sum[i], out[at + i]);
        }
      }
    }
  }
};

// grad_x = weight * inverse * (g - xhat <g, xhat>); where eps was the larger, without xhat.
template <class T, class A>
struct Backward {
  NormalizedSize size;
  const T *grad, *x;
  const A* inverse;
  A weight;
  T* grad_x;

  template <int kLanes>
  MMSSL_INLINE void rows(int64_t begin, int64_t end) const {
    const int64_t d = size.dim;
    for (int64_t n = begin; n < end; ++n) {
      const T* g = grad + n * d;
      for (int64_t m = 0; m < size.views; ++m) {
        const int64_t at = m * size.view_step + n * size.row_step;
        const T* v = x + at;
        const A inv = inverse[m * size.rows + n];
        const A along = inv < 0 ? A(0) : inv * inv * dot<T, A, kLanes>(g, v, d);
        const A scale = weight * std::abs(inv);
        for (int64_t k = 0; k < d; ++k) {
          narrow(scale * (widen(g[k]) - along * widen(v[k])), grad_x[at + k]);
        }
      }
    }
  }
};

#define MMSSL_ENTRY(level, target, bytes)                                   \
  template <class Job, class A>                                             \
  target void rows_##level(const Job& job, int64_t begin, int64_t end) {    \
    job.template rows<bytes / sizeof(A)>(begin, end);                       \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

template <class A, class Job>
void launch(const Job& job, const Parallel& pool) {
  const auto& rows = at_level(rows_default<Job, A>, rows_avx2<Job, A>, rows_avx512<Job, A>);
  for_each_task(pool, (job.size.rows + kTaskRows - 1) / kTaskRows, [&](int64_t task) {
    rows(job, task * kTaskRows, std::min(job.size.rows, (task + 1) * kTaskRows));
  });
}

}  // namespace

template <class T, class A>
void add_normalized(const NormalizedSize& size, const T* base, const T* x, A weight, T* out,
                    A* inverse, const Parallel& pool) {
  launch<A>(Forward<T, A>{size, base, x, weight, out, inverse}, pool);
}

template <class T, class A>
void add_normalized_backward(const NormalizedSize& size, const T* grad, const T* x,
                             const A* inverse, A weight, T* grad_x, const Parallel& pool) {
  launch<A>(Backward<T, A>{size, grad, x, inverse, weight, grad_x}, pool);
}

#define MMSSL_INSTANTIATE(T, A)                                                                   \
  template void add_normalized<T, A>(const NormalizedSize&, const T*, const T*, A, T*, A*,        \
                                     const Parallel&);                                            \
  template void add_normalized_backward<T, A>(const NormalizedSize&, const T*, const T*, const A*, \
                                              A, T*, const Parallel&);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(double, double)
MMSSL_INSTANTIATE(bf16, float)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cpu
