#include "ops/propagate/spmm.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/check_index.h"
#include "common/dot.h"
#include "ops/propagate/partition.h"
#include "common/simd.h"

namespace mmssl::cpu {
namespace {

// Edges by which gathered rows are prefetched: enough to cover the latency of the last-level cache,
// or of memory where x does not fit in that cache, and few enough that the rows are still in the
// first-level cache when they are used.
constexpr int64_t kAheadInCache = 24, kAheadInMemory = 48;
constexpr int64_t kBytesAhead = 12 << 10;  // a quarter of a first-level cache
constexpr int64_t kBytesInCache = 4 << 20, kScaleBytesInCache = 1 << 20;
// Below this many multiply-adds per task a thread costs more than it saves.
constexpr int64_t kMinTaskWork = 1 << 16;
// More tasks than threads, so that others can take over the work of a delayed thread.
constexpr int64_t kTasksPerThread = 8;
// The indices of a task, which are checked first, must stay in the second-level cache.
constexpr int64_t kMaxTaskWork = 1 << 22;

inline int64_t edges_ahead(int64_t columns, int64_t row_bytes) {
  const int64_t most = columns * row_bytes > kBytesInCache ? kAheadInMemory : kAheadInCache;
  return std::clamp<int64_t>(kBytesAhead / row_bytes, 8, most);
}

template <class T, class A>
struct Spmm {
  SparseArgs<A> a;
  const T* x;  // (C, d)
  T* y;        // (R, d)
  int64_t d;
  A* partial;     // (slots, d): chunk sums of the rows that are shared between tasks
  int64_t ahead;  // edges
  bool far_scale;  // whether col_scale is prefetched too
};

// The factors of an edge's row. The common cases have separate loops: a loop that tests for all of
// them takes a fifth more time.
enum class Weights { kOnes, kColumns, kAny };

template <Weights kWeights, class A>
MMSSL_INLINE A edge_weight(const SparseArgs<A>& a, int64_t p, int32_t c) {
  if constexpr (kWeights == Weights::kOnes) return 1;
  if constexpr (kWeights == Weights::kColumns) return a.col_scale[c];
  A weight = 1;
  if (a.value != nullptr) weight = a.value[a.edge == nullptr ? p : a.edge[p]];
  if (a.col_scale != nullptr) weight *= a.col_scale[c];
  return weight;
}

template <class A>
Weights weights_of(const SparseArgs<A>& a) {
  if (a.value != nullptr) return Weights::kAny;
  return a.col_scale == nullptr ? Weights::kOnes : Weights::kColumns;
}

MMSSL_INLINE void write(float* out, float v) { *out = v; }
MMSSL_INLINE void write(double* out, double v) { *out = v; }
MMSSL_INLINE void write(bf16* out, float v) { *out = to_bf16(v); }

// sum += weight * x, over kVecs vectors of stored numbers. bf16 goes by pairs of vectors.
template <class T, class A, int kLanes, int kVecs, Weights kWeights>
MMSSL_INLINE void add_row(Vec<A, kLanes> (&sum)[kVecs], const T* x, A weight) {
  constexpr bool kWeighted = kWeights != Weights::kOnes;
  if constexpr (std::is_same_v<T, bf16> && kVecs > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; i += 2) {
      Vec<A, kLanes> even, odd;
      load_pair<kLanes>(x + i * kLanes, even, odd);
      sum[i] += kWeighted ? weight * even : even;
      sum[i + 1] += kWeighted ? weight * odd : odd;
    }
  } else if constexpr (kLanes == 1) {
    for (int i = 0; i < kVecs; ++i) sum[i] += kWeighted ? weight * widen(x[i]) : widen(x[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) {
      const Vec<A, kLanes> v = load<A, kLanes>(x + i * kLanes);
      sum[i] += kWeighted ? weight * v : v;
    }
  }
}

template <class T, class A, int kLanes, int kVecs, class Out>
MMSSL_INLINE void store_row(Out* out, const Vec<A, kLanes> (&sum)[kVecs], A scale) {
  if constexpr (std::is_same_v<T, bf16> && kVecs > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; i += 2) {
      store_pair<kLanes>(out + i * kLanes, scale * sum[i], scale * sum[i + 1]);
    }
  } else if constexpr (kLanes == 1) {
    for (int i = 0; i < kVecs; ++i) write(out + i, scale * sum[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) store<A, kLanes>(out + i * kLanes, scale * sum[i]);
  }
}

// out[k, k + kLanes * kVecs) = scale * the sum over positions [begin, end), kept in registers. Each
// column is summed edge by edge, so that all SIMD levels give the same bits.
template <class T, class A, int kLanes, int kVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_columns(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k, A scale,
                              Out* out) {
  if constexpr (std::is_same_v<T, bf16> && kVecs == 1 && kLanes > 1) {
    sum_columns<T, A, kLanes / 2, 2, kWeights>(s, begin, end, k, scale, out);
  } else {
    Vec<A, kLanes> sum[kVecs] = {};
    const int32_t* col = s.a.col;
    constexpr int64_t kBytes = int64_t(kLanes) * kVecs * sizeof(T);
    for (int64_t p = begin; p < end; ++p) {
      if (p + s.ahead < s.a.nnz) {
        const int64_t c = col[p + s.ahead];
        const char* next = reinterpret_cast<const char*>(s.x + c * s.d + k);
#pragma GCC unroll 16
        for (int64_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(next + byte);
        if (kWeights == Weights::kColumns && s.far_scale) __builtin_prefetch(s.a.col_scale + c);
      }
      const A weight = edge_weight<kWeights>(s.a, p, col[p]);
      add_row<T, A, kLanes, kVecs, kWeights>(sum, s.x + col[p] * s.d + k, weight);
    }
    store_row<T, A, kLanes, kVecs>(out + k, sum, scale);
  }
}

// The last d % kLanes columns: by one vector that overlaps columns already done (which get the same
// results again), or by narrower vectors where the whole row is shorter than one.
template <class T, class A, int kLanes, Weights kWeights, class Out>
MMSSL_INLINE void sum_tail(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k, A scale,
                           Out* out) {
  if (s.d >= kLanes) {
    if (k + kLanes <= s.d) {
      sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, k, scale, out);
      k += kLanes;
    }
    if (k < s.d) {
      sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, s.d - kLanes, scale, out);
    }
  } else if constexpr (kLanes > 1) {
    sum_tail<T, A, kLanes / 2, kWeights>(s, begin, end, k, scale, out);
  }
}

// out[0, d) = scale * sum over positions [begin, end), widest blocks first.
template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_row(const Spmm<T, A>& s, int64_t begin, int64_t end, A scale, Out* out) {
  int64_t k = 0;
  for (; k + kMaxVecs * kLanes <= s.d; k += kMaxVecs * kLanes) {
    sum_columns<T, A, kLanes, kMaxVecs, kWeights>(s, begin, end, k, scale, out);
  }
  if constexpr (kMaxVecs > 8) {
    if (k + 8 * kLanes <= s.d) {
      sum_columns<T, A, kLanes, 8, kWeights>(s, begin, end, k, scale, out);
      k += 8 * kLanes;
    }
  }
  if (k + 4 * kLanes <= s.d) {
    sum_columns<T, A, kLanes, 4, kWeights>(s, begin, end, k, scale, out);
    k += 4 * kLanes;
  }
  if (k + 2 * kLanes <= s.d) {
    sum_columns<T, A, kLanes, 2, kWeights>(s, begin, end, k, scale, out);
    k += 2 * kLanes;
  }
  if (k < s.d) sum_tail<T, A, kLanes, kWeights>(s, begin, end, k, scale, out);
}

// A task checks its own part of the index before it follows it. Its thread is about to read that
// part anyway, so the check costs next to nothing.
template <class A>
MMSSL_INLINE bool check(const SparseArgs<A>& a, const Cut& from, const Cut& to) {
  const int64_t begin = from.position, count = to.position - begin;
  return mmssl::ids_in_range(a.col + begin, count, a.columns) &&
         (a.edge == nullptr || mmssl::ids_in_range(a.edge + begin, count, a.nnz));
}

template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights>
MMSSL_INLINE bool run_task(const Spmm<T, A>& s, const Cut& from, const Cut& to) {
  if (!check(s.a, from, to)) return false;
  std::unique_ptr<A[]> own;  // sum and current chunk of a long row that no other task touches
  const int64_t last = to.slot < 0 ? to.row : to.row + 1;
  for (int64_t row = from.row; row < last; ++row) {
    const int64_t first = s.a.rowptr[row], end = s.a.rowptr[row + 1];
    const A scale = s.a.row_scale == nullptr ? A(1) : s.a.row_scale[row];
    T* y = s.y + row * s.d;
    if (end - first <= kChunkEdges) {
      sum_row<T, A, kLanes, kMaxVecs, kWeights>(s, first, end, scale, y);
      continue;
    }
    const bool cut_before = row == from.row && from.slot >= 0;
    const bool cut_after = row == to.row && to.slot >= 0;
    const bool shared = cut_before || cut_after;
    const int64_t begin = cut_before ? from.position : first;
    const int64_t stop = cut_after ? to.position : end;
    if (!shared && !own) own.reset(new A[2 * s.d]);
    A* sum = shared ? s.partial + (cut_before ? from.slot : to.slot) * s.d : own.get();
    for (int64_t p = begin; p < stop; p += kChunkEdges) {
      const int64_t chunk = (p - first) / kChunkEdges;
      A* out = sum + (shared ? chunk : std::min<int64_t>(chunk, 1)) * s.d;
      sum_row<T, A, kLanes, kMaxVecs, kWeights>(s, p, std::min(p + kChunkEdges, stop), A(1), out);
      if (shared || chunk == 0) continue;
      for (int64_t k = 0; k < s.d; ++k) sum[k] += out[k];
    }
    if (shared) continue;
    for (int64_t k = 0; k < s.d; ++k) write(y + k, scale * sum[k]);
  }
  return true;
}

// Adds the chunk sums of the shared rows, in the order of the chunks.
template <class T, class A>
void join_split_rows(const Spmm<T, A>& s, const Partition& partition) {
  for (const Cut& cut : partition.split_rows) {
    const int64_t chunks = num_chunks(s.a.rowptr[cut.row + 1] - s.a.rowptr[cut.row]);
    A* sum = s.partial + cut.slot * s.d;
    for (int64_t c = 1; c < chunks; ++c) {
      for (int64_t k = 0; k < s.d; ++k) sum[k] += sum[c * s.d + k];
    }
    const A scale = s.a.row_scale == nullptr ? A(1) : s.a.row_scale[cut.row];
    for (int64_t k = 0; k < s.d; ++k) write(s.y + cut.row * s.d + k, scale * sum[k]);
  }
}

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

// One entry point per level and job; the number of accumulators follows the number of registers.
#define MMSSL_ENTRY(level, target, bytes, max_vecs)                                             \
  template <class T, class A, Weights kWeights>                                                 \
  target bool spmm_##level(const Spmm<T, A>& s, const Cut& from, const Cut& to) {           \
    return run_task<T, A, bytes / sizeof(A), max_vecs, kWeights>(s, from, to);                  \
  }                                                                                             \
  template <class T, class A>                                                                   \
  target bool value_grad_##level(const ValueGrad<T, A>& s, const Cut& from, const Cut& to) { \
    return run_value_grad<T, A, bytes / sizeof(A)>(s, from, to);                                \
  }
MMSSL_ENTRY(default, , 16, 8)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32, 8)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64, 16)
#undef MMSSL_ENTRY

template <class A>
int64_t work_of(const SparseArgs<A>& a, int64_t d) {
  return (a.rows + a.nnz) * d;
}

// Tasks for one of several matrices; `share` of all the work of a call is its own.
template <class A>
Partition make_partition(const SparseArgs<A>& a, int64_t d, double share, const Parallel& pool) {
  const int64_t work = work_of(a, d), least = work / kMaxTaskWork;
  const int64_t wanted = pool.threads <= 1 ? 1 : int64_t(kTasksPerThread * pool.threads * share);
  return partition_rows(a.rowptr, a.rows, std::max(least, std::min(work / kMinTaskWork, wanted)));
}

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
    const Spmm<T, A> s{p.a, p.x, p.y, p.d, nullptr, edges_ahead(p.a.columns, p.d * sizeof(T)),
                       p.a.columns * int64_t(sizeof(A)) > kScaleBytesInCache};
    jobs.push_back({s, std::move(partition), kernel<T, A>(weights_of(p.a)), first_task});
  }
  const std::unique_ptr<A[]> partial(new A[partials]);
  partials = 0;
  for (auto& job : jobs) {
    job.s.partial = partial.get() + partials;
    partials += job.partition.slots * job.s.d;
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

bool spmm(std::span<const SparseProduct<float, float>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}
bool spmm(std::span<const SparseProduct<bf16, float>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}
bool spmm(std::span<const SparseProduct<double, double>> products, const Parallel& pool) {
  return launch_spmm(products, pool);
}

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
