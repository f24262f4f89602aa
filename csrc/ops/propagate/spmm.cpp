#include "ops/propagate/spmm.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/simd.h"
#include "ops/propagate/tasks.h"

namespace mmssl::cpu {
namespace {

template <class T, class A>
struct Spmm {
  SparseArgs<A> a;
  const T* x;  // (C, d)
  T* y;        // (R, d)
  int64_t d;
  A* partial;     // (slots, d): chunk sums of the rows that are shared between tasks
  int64_t ahead;  // edges
  bool far_scale;  // whether col_scale is prefetched too
  Epilogue<T, A> epilogue;
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

template <class T, class A, int kLanes>
MMSSL_INLINE void finish_columns(const Spmm<T, A>& s, int64_t at) {
  const Epilogue<T, A>& e = s.epilogue;
  const Vec<A, kLanes> before = e.base != nullptr ? load_as<A, T, kLanes>(e.base + at)
                                                  : load<A, kLanes>(e.sums + at);
  const Vec<A, kLanes> v = before + load_as<A, T, kLanes>(s.y + at);
  if (e.out != nullptr) {
    store_as<A, T, kLanes>(e.out + at, e.scale * v);
  } else {
    store<A, kLanes>(e.sums + at, v);
  }
}

// The epilogue of a row, which is still in the first-level cache.
template <class T, class A, int kLanes>
MMSSL_INLINE void finish_row(const Spmm<T, A>& s, int64_t row) {
  if (s.epilogue.base == nullptr && s.epilogue.sums == nullptr) return;
  int64_t k = 0;
  for (; k + kLanes <= s.d; k += kLanes) finish_columns<T, A, kLanes>(s, row * s.d + k);
  for (; k < s.d; ++k) finish_columns<T, A, 1>(s, row * s.d + k);
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
      finish_row<T, A, kLanes>(s, row);
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
    finish_row<T, A, kLanes>(s, row);
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
    finish_row<T, A, 1>(s, cut.row);
  }
}

// One entry point per level; the number of accumulators follows the number of registers.
#define MMSSL_ENTRY(level, target, bytes, max_vecs)                               \
  template <class T, class A, Weights kWeights>                                   \
  target bool spmm_##level(const Spmm<T, A>& s, const Cut& from, const Cut& to) { \
    return run_task<T, A, bytes / sizeof(A), max_vecs, kWeights>(s, from, to);    \
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
    const Spmm<T, A> s{p.a, p.x, p.y, p.d, nullptr, edges_ahead(p.a.columns, p.d * sizeof(T)),
                       p.a.columns * int64_t(sizeof(A)) > kScaleBytesInCache, p.epilogue};
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
