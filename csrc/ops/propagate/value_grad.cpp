// The gradient of spmm for the values of the edges. Formula: spmm.h.
#include <algorithm>
#include <atomic>

#include "common/dot.h"
#include "common/simd.h"
#include "ops/propagate/spmm.h"
#include "ops/propagate/tasks.h"

namespace mmssl::cpu {
namespace {

template <class T, class A>
struct ValueGrad {
  SparseArgs<A> a;
  const T* g;  // (R, d)
  const T* x;  // (C, d)
  A* out;      // (E)
  int64_t d;
};

template <class T, class A, int kLanes>
MMSSL_INLINE bool run_value_grad(const ValueGrad<T, A>& s, const Cut& from, const Cut& to) {
  const SparseArgs<A>& a = s.a;
  if (!check(a, from, to)) return false;
  // The rest of a longer row is left to the processor, which prefetches sequential reads.
  const int64_t row_bytes = std::min<int64_t>(s.d * sizeof(T), 512);
  const int64_t ahead = edges_ahead(a.columns, s.d * sizeof(T));
  for (int64_t row = from.row, p = from.position; p < to.position; ++row) {
    const int64_t end = std::min(a.rowptr[row + 1], to.position);
    const A row_scale = a.row_scale == nullptr ? A(1) : a.row_scale[row];
    for (; p < end; ++p) {
      if (p + ahead < a.nnz) {
        const char* next = reinterpret_cast<const char*>(s.x + a.col[p + ahead] * s.d);
        for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(next + byte);
      }
      const A scale = a.col_scale == nullptr ? row_scale : row_scale * a.col_scale[a.col[p]];
      const A product = dot<T, A, kLanes>(s.g + row * s.d, s.x + a.col[p] * s.d, s.d);
      s.out[a.edge == nullptr ? p : a.edge[p]] = scale * product;
    }
  }
  return true;
}

#define MMSSL_ENTRY(level, target, bytes)                                                    \
  template <class T, class A>                                                                \
  target bool value_grad_##level(const ValueGrad<T, A>& s, const Cut& from, const Cut& to) { \
    return run_value_grad<T, A, bytes / sizeof(A)>(s, from, to);                             \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

template <class T, class A>
bool launch_value_grad(const SparseArgs<A>& a, const T* g, const T* x, A* out, int64_t d,
                       const Parallel& pool) {
  if (a.nnz == 0) return true;
  const Partition partition = make_partition(a, d, 1, pool);
  const ValueGrad<T, A> s{a, g, x, out, d};
  const auto& task =
      at_level(value_grad_default<T, A>, value_grad_avx2<T, A>, value_grad_avx512<T, A>);
  std::atomic<bool> good = true;
  for_each_task(pool, partition.tasks(), [&](int64_t t) {
    if (!task(s, partition.cuts[t], partition.cuts[t + 1])) {
      good.store(false, std::memory_order_relaxed);
    }
  });
  return good;
}

}  // namespace

bool spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x, float* out,
                     int64_t d, const Parallel& pool) {
  return launch_value_grad(a, g, x, out, d, pool);
}
bool spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x, float* out,
                     int64_t d, const Parallel& pool) {
  return launch_value_grad(a, g, x, out, d, pool);
}
bool spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x, double* out,
                     int64_t d, const Parallel& pool) {
  return launch_value_grad(a, g, x, out, d, pool);
}

}  // namespace mmssl::cpu
