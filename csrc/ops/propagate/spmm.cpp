#include "ops/propagate/spmm.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/simd.h"
#include "ops/propagate/row_sums.h"
#include "ops/propagate/tasks.h"

namespace mmssl::cpu {
namespace {

// A row of y from the sum of its chunks, which it may overwrite.
template <class T, class A>
MMSSL_INLINE void write_row(const Spmm<T, A>& s, int64_t row, A* sum) {
  const Finish<T, A> f = finish_of(s.p, row);
  const auto finished = [&](int64_t k) {
    return f.base == nullptr ? f.scale * sum[k] : f(sum[k], widen(f.base[k]));
  };
  if constexpr (std::is_same_v<T, A>) {
    if (s.p.epilogue.adam.mean != nullptr) {
      for (int64_t k = 0; k < s.p.d; ++k) sum[k] = finished(k);
      return update_row<A, 1>(s.p, row, sum, s.p.d);
    }
  }
  T* y = s.p.y + row * s.p.y_stride;
  for (int64_t k = 0; k < s.p.d; ++k) write(y + k, finished(k));
}

// kVecs: the vectors of a row, or 0 for rows of any width. No store can change the copy of s.
template <class T, class A, class Level, Weights kWeights, int kVecs>
MMSSL_INLINE void run_rows(const Spmm<T, A> s, const Cut& from, const Cut& to) {
  constexpr int kLanes = Level::kBytes / sizeof(A), kMaxVecs = Level::kMaxVecs;
  const SparseArgs<A>& a = s.p.a;
  const int64_t d = s.p.d;
  const bool updates = std::is_same_v<T, A> && s.p.epilogue.adam.mean != nullptr;
  const std::unique_ptr<T[]> grad(updates ? new T[d] : nullptr);  // a row
  std::unique_ptr<A[]> own;  // sum and current chunk of a long row that no other task touches
  const int64_t last = to.slot < 0 ? to.row : to.row + 1;
  for (int64_t row = from.row; row < last; ++row) {
    if constexpr (kVecs > 0) {
      const Epilogue<T, A>& e = s.p.epilogue;
      if (e.base == nullptr) {
        row = Level::template short_rows<T, A, kWeights, kVecs, Ends::kNone>(s, row, last, nullptr);
      } else if (e.base_row == nullptr && !updates) {
        row = Level::template short_rows<T, A, kWeights, kVecs, Ends::kBase>(s, row, last, nullptr);
      } else {
        row = Level::template short_rows<T, A, kWeights, kVecs, Ends::kAny>(s, row, last, grad.get());
      }
      if (row == last) break;
    }
    const int64_t first = a.rowptr[row], end = a.rowptr[row + 1];
    if (end - first <= kChunkEdges) {
      T* y = updates ? grad.get() : s.p.y + row * s.p.y_stride;
      sum_row<T, A, kLanes, kMaxVecs, kWeights>(s, first, end, finish_of(s.p, row), y);
      if constexpr (std::is_same_v<T, A>) {
        if (updates) update_row<A, kLanes>(s.p, row, y, d);
      }
      continue;
    }
    const bool cut_before = row == from.row && from.slot >= 0;
    const bool cut_after = row == to.row && to.slot >= 0;
    const bool shared = cut_before || cut_after;
    const int64_t begin = cut_before ? from.position : first;
    const int64_t stop = cut_after ? to.position : end;
    if (!shared && !own) own.reset(new A[2 * d]);
    A* sum = shared ? s.partial + (cut_before ? from.slot : to.slot) * d : own.get();
    for (int64_t p = begin; p < stop; p += kChunkEdges) {
      const int64_t chunk = (p - first) / kChunkEdges;
      A* out = sum + (shared ? chunk : std::min<int64_t>(chunk, 1)) * d;
      const Finish<T, A> plain{A(1)};
      sum_row<T, A, kLanes, kMaxVecs, kWeights>(s, p, std::min(p + kChunkEdges, stop), plain, out);
      if (shared || chunk == 0) continue;
      for (int64_t k = 0; k < d; ++k) sum[k] += out[k];
    }
    if (!shared) write_row(s, row, sum);
  }
}

template <class T, class A, class Level, Weights kWeights>
MMSSL_INLINE bool run_task(const Spmm<T, A>& s, const Cut& from, const Cut& to) {
  constexpr int kLanes = Level::kBytes / sizeof(A);
  if (!check(s.p.a, from, to)) return false;
  if (s.p.d == 4 * kLanes) {
    run_rows<T, A, Level, kWeights, 4>(s, from, to);
  } else if (s.p.d == 2 * kLanes) {
    run_rows<T, A, Level, kWeights, 2>(s, from, to);
  } else {
    run_rows<T, A, Level, kWeights, 0>(s, from, to);
  }
  return true;
}

// Adds the chunk sums of the shared rows, in the order of the chunks.
template <class T, class A>
void join_split_rows(const Spmm<T, A>& s, const Partition& partition) {
  const int64_t d = s.p.d;
  for (const Cut& cut : partition.split_rows) {
    const int64_t chunks = num_chunks(s.p.a.rowptr[cut.row + 1] - s.p.a.rowptr[cut.row]);
    A* sum = s.partial + cut.slot * d;
    for (int64_t c = 1; c < chunks; ++c) {
      for (int64_t k = 0; k < d; ++k) sum[k] += sum[c * d + k];
    }
    write_row(s, cut.row, sum);
  }
}

// One entry point per level; the number of accumulators follows the number of registers. The loop over
// short rows is a function of its own, because inlined next to all others it lacks registers.
#define MMSSL_ENTRY(level, target, bytes, max_vecs)                                          \
  struct Level_##level {                                                                     \
    static constexpr int kBytes = bytes, kMaxVecs = max_vecs;                                \
    template <class T, class A, Weights kWeights, int kVecs, Ends kEnds>                     \
    target __attribute__((noinline)) static int64_t short_rows(const Spmm<T, A>& s,          \
                                                               int64_t row, int64_t last,    \
                                                               T* grad) {                    \
      return run_short_rows<T, A, bytes / sizeof(A), kVecs, kWeights, kEnds>(s, row, last,   \
                                                                             grad);          \
    }                                                                                        \
  };                                                                                         \
  template <class T, class A, Weights kWeights>                                              \
  target bool spmm_##level(const Spmm<T, A>& s, const Cut& from, const Cut& to) {            \
    return run_task<T, A, Level_##level, kWeights>(s, from, to);                             \
  }
MMSSL_ENTRY(default, , 16, 8)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32, 8)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64, 16)
#undef MMSSL_ENTRY

template <class T, class A>
struct Job {
  Spmm<T, A> s;
  Partition partition;
  bool (*run)(const Spmm<T, A>&, const Cut&, const Cut&);
  int64_t first_task;  // tasks of the jobs before this one
};

template <class T, class A, Weights kWeights>
auto kernel() {
  return at_level(spmm_default<T, A, kWeights>, spmm_avx2<T, A, kWeights>,
                  spmm_avx512<T, A, kWeights>);
}

template <class T, class A>
auto kernel(Weights weights) {
  switch (weights) {
    case Weights::kOnes:
      return kernel<T, A, Weights::kOnes>();
    case Weights::kColumns:
      return kernel<T, A, Weights::kColumns>();
    default:
      return kernel<T, A, Weights::kAny>();
  }
}

template <class T, class A>
bool launch_spmm(std::span<const SparseProduct<T, A>> products, const Parallel& pool) {
  double work = 0;
  for (const auto& p : products) work += double(work_of(p.a, p.d));
  std::vector<Job<T, A>> jobs;
  int64_t tasks = 0, partials = 0;
  for (const auto& p : products) {
    if (p.a.rows == 0 || p.d == 0) continue;
    Partition partition = make_partition(p.a, p.d, double(work_of(p.a, p.d)) / work, pool);
    const int64_t first_task = tasks;
    tasks += partition.tasks(), partials += partition.slots * p.d;
    const Spmm<T, A> s{p, nullptr, edges_ahead(p.a.columns, p.d * sizeof(T)),
                       p.a.columns * int64_t(sizeof(A)) > kScaleBytesInCache};
    jobs.push_back({s, std::move(partition), kernel<T, A>(weights_of(p.a)), first_task});
  }
  const std::unique_ptr<A[]> partial(new A[partials]);
  partials = 0;
  for (auto& job : jobs) {
    job.s.partial = partial.get() + partials;
    partials += job.partition.slots * job.s.p.d;
  }
  std::atomic<bool> good = true;
  for_each_task(pool, tasks, [&](int64_t task) {
    const auto after = std::upper_bound(
        jobs.begin(), jobs.end(), task,
        [](int64_t t, const Job<T, A>& job) { return t < job.first_task; });
    const Job<T, A>& job = *std::prev(after);
    const Cut* cut = &job.partition.cuts[task - job.first_task];
    if (!job.run(job.s, cut[0], cut[1])) good.store(false, std::memory_order_relaxed);
  });
  if (!good) return false;
  for (const auto& job : jobs) join_split_rows(job.s, job.partition);
  return true;
}

}  // namespace

bool spmm(std::span<const SparseProduct<float, float>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}
bool spmm(std::span<const SparseProduct<bf16, float>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}
bool spmm(std::span<const SparseProduct<double, double>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}

}  // namespace mmssl::cpu
