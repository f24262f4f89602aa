#include "ops/products/products.h"

#include <algorithm>
#include <vector>

#include "common/buffer.h"
#include "gemm/register_tile.h"

namespace mmssl::cpu {
namespace {

// Rows of a task, which has its own sums; more rows, and so fewer tasks, where the sums are large.
constexpr int64_t kTaskRows = 512;
constexpr int64_t kLargeSum = 1 << 15, kLargeTasks = 8;
// Rows multiplied at a time, so that a panel of b stays in the first-level cache.
constexpr int64_t kDepth = 128;
// Sides of the blocks in which a matrix is transposed: a cache line of float32.
constexpr int64_t kSide = 16;
constexpr int64_t kTransposeRows = 128;

// R x kVecs registers hold sums.
template <class A, int kLanes, int kVecs>
using Tall = Shape<A, kLanes, 4, kVecs>;

// Some rows of a and b, and the sums that their product is added to.
template <class A>
struct Block {
  const A *a, *b;
  int64_t p, q, depth;
  A* out;
  bool upper;  // only the entries on or above the diagonal are computed
};

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// R rows of out, columns [begin, end).
template <class S, int R>
MMSSL_INLINE void some_rows(const Block<typename S::A>& t, int64_t i, int64_t begin, int64_t end) {
  using One = Tall<typename S::A, 1, 1>;
  const auto* a = t.a + i;
  auto* out = t.out + i * t.q;
  int64_t j = begin;
  for (; j + S::kVecs * S::kLanes <= end; j += S::kVecs * S::kLanes) {
    multiply<S, R, S::kVecs, true>(a, 1, t.p, t.b + j, t.q, t.depth, out + j, t.q);
  }
  for (; j + S::kLanes <= end; j += S::kLanes) {
    multiply<S, R, 1, true>(a, 1, t.p, t.b + j, t.q, t.depth, out + j, t.q);
  }
  for (; j < end; ++j) {
    multiply<One, R, 1, true>(a, 1, t.p, t.b + j, t.q, t.depth, out + j, t.q);
  }
}

template <class S>
MMSSL_INLINE void block(const Block<typename S::A>& t) {
  constexpr int64_t kPanel = S::kVecs * S::kLanes;
  for (int64_t j = 0; j < t.q; j += kPanel) {
    const int64_t end = std::min(t.q, j + kPanel), rows = t.upper ? std::min(t.p, end) : t.p;
    int64_t i = 0;
    for (; i + S::kRows <= rows; i += S::kRows) some_rows<S, S::kRows>(t, i, j, end);
    for (; i < rows; ++i) some_rows<S, 1>(t, i, j, end);
  }
}

#define MMSSL_ENTRY(level, target, bytes, vecs)           \
  template <class A>                                      \
  target void block_##level(const Block<A>& t) {          \
    block<Tall<A, bytes / sizeof(A), vecs>>(t);           \
  }
MMSSL_ENTRY(default, , 16, 2)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32, 2)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64, 4)
#undef MMSSL_ENTRY
#pragma GCC pop_options

// Adds the sums of all tasks, in the order of the tasks.
template <class A>
void add_up(const A* parts, int64_t tasks, int64_t size, A* out, const Parallel& pool) {
  constexpr int64_t kChunk = 4096;
  for_each_task(pool, (size + kChunk - 1) / kChunk, [&](int64_t chunk) {
    double sum[kChunk] = {};
    const int64_t first = chunk * kChunk, count = std::min(kChunk, size - first);
    for (int64_t t = 0; t < tasks; ++t) {
      const A* part = parts + t * size + first;
      for (int64_t e = 0; e < count; ++e) sum[e] += part[e];
    }
    std::copy_n(sum, count, out + first);
  });
}

// Calls f(first row, rows, sums of the task, zeroed) for every task.
template <class A, class F>
void sum_over_rows(int64_t n, int64_t size, A* out, const Parallel& pool, const F& f) {
  const int64_t share = size < kLargeSum ? 0 : (n + kLargeTasks - 1) / kLargeTasks;
  const int64_t task_rows = std::max(kTaskRows, share);
  const int64_t tasks = (n + task_rows - 1) / task_rows;
  const Buffer<A> parts(tasks * size);
  for_each_task(pool, tasks, [&](int64_t task) {
    A* sums = parts.get() + task * size;
    std::fill_n(sums, size, A(0));
    f(task * task_rows, std::min(task_rows, n - task * task_rows), sums);
  });
  add_up(parts.get(), tasks, size, out, pool);
}

// Copies the entries above the diagonal of a (p, p) matrix below it.
template <class A>
void mirror(A* x, int64_t p) {
  for (int64_t begin = 0; begin < p; begin += kSide) {
    for (int64_t i = begin; i < p; ++i) {
      const int64_t end = std::min(i, begin + kSide);
      for (int64_t j = begin; j < end; ++j) x[i * p + j] = x[j * p + i];
    }
  }
}

template <class T>
void transpose_elements(const T* x, int64_t n, int64_t p, T* out, const Parallel& pool) {
  for_each_task(pool, (n + kTransposeRows - 1) / kTransposeRows, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kTransposeRows);
    for (int64_t c = 0; c < p; c += kSide) {
      const int64_t columns = std::min(kSide, p - c);
      for (int64_t r = task * kTransposeRows; r < end; r += kSide) {
        const T* from = x + r * p + c;
        T* to = out + c * n + r;
        if (const int64_t rows = std::min(kSide, end - r); rows == kSide) {
          for (int64_t k = 0; k < columns; ++k) {
            for (int64_t i = 0; i < kSide; ++i) to[k * n + i] = from[i * p + k];
          }
        } else {
          for (int64_t k = 0; k < columns; ++k) {
            for (int64_t i = 0; i < rows; ++i) to[k * n + i] = from[i * p + k];
          }
        }
      }
    }
  });
}

}  // namespace

template <class A>
void tall_product(const A* a, int64_t p, const A* b, int64_t q, int64_t n, A* out,
                  const Parallel& pool) {
  const auto& add = at_level(block_default<A>, block_avx2<A>, block_avx512<A>);
  const bool symmetric = a == b && p == q;
  sum_over_rows<A>(n, p * q, out, pool, [&](int64_t first, int64_t rows, A* sums) {
    for (int64_t k = first; k < first + rows; k += kDepth) {
      const int64_t depth = std::min(kDepth, first + rows - k);
      add({a + k * p, b + k * q, p, q, depth, sums, symmetric});
    }
  });
  if (symmetric) mirror(out, p);
}

template <class T>
void gram(const T* x, int64_t p, int64_t n, double* out, const Parallel& pool) {
  const auto& add = at_level(block_default<double>, block_avx2<double>, block_avx512<double>);
  sum_over_rows<double>(n, p * p, out, pool, [&](int64_t first, int64_t rows, double* sums) {
    std::vector<double> wide(kDepth * p);
    for (int64_t k = first; k < first + rows; k += kDepth) {
      const int64_t depth = std::min(kDepth, first + rows - k);
      for (int64_t e = 0; e < depth * p; ++e) wide[e] = widen(x[k * p + e]);
      add({wide.data(), wide.data(), p, p, depth, sums, true});
    }
  });
  mirror(out, p);
}

void transpose(const void* x, int64_t n, int64_t p, int64_t element_bytes, void* out,
               const Parallel& pool) {
  const auto as = [&](auto element) {
    using T = decltype(element);
    transpose_elements(static_cast<const T*>(x), n, p, static_cast<T*>(out), pool);
  };
  if (element_bytes == 2) {
    as(uint16_t{});
  } else if (element_bytes == 4) {
    as(uint32_t{});
  } else {
    as(uint64_t{});
  }
}

template void tall_product(const float*, int64_t, const float*, int64_t, int64_t, float*,
                           const Parallel&);
template void tall_product(const double*, int64_t, const double*, int64_t, int64_t, double*,
                           const Parallel&);
template void gram(const float*, int64_t, int64_t, double*, const Parallel&);
template void gram(const bf16*, int64_t, int64_t, double*, const Parallel&);
template void gram(const double*, int64_t, int64_t, double*, const Parallel&);

}  // namespace mmssl::cpu
