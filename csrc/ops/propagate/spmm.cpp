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
  SparseProduct<T, A> p;
  A* partial;      // (slots, d): chunk sums of the rows that are shared between tasks
  int64_t ahead;   // edges
  bool far_scale;  // whether col_scale is prefetched too
};

// How a sum becomes a row of the result: factor * (base + scale * sum), or scale * sum without base.
template <class T, class A>
struct Finish {
  A scale;
  const T* base = nullptr;
  A factor = 1;

  Finish columns_from(int64_t k) const { return {scale, base == nullptr ? base : base + k, factor}; }
  template <class V, class B>
  MMSSL_INLINE V operator()(const V& sum, const B& before) const {
    return factor * (before + scale * sum);
  }
};

template <class T, class A>
MMSSL_INLINE Finish<T, A> finish_of(const SparseProduct<T, A>& p, int64_t row) {
  const Epilogue<T, A>& e = p.epilogue;
  const A scale = p.a.row_scale == nullptr ? A(1) : p.a.row_scale[row];
  if (e.base == nullptr) return {scale};
  const A factor = e.factor == nullptr ? e.scale : e.scale * e.factor[row];
  const int64_t base_row = e.base_row == nullptr ? row : e.base_row[row];
  return {scale, e.base + base_row * e.base_stride, factor};
}

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
MMSSL_INLINE void store_row(Out* out, const Vec<A, kLanes> (&sum)[kVecs], const Finish<T, A>& f) {
  if constexpr (std::is_same_v<T, bf16> && kVecs > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; i += 2) {
      Vec<A, kLanes> even = f.scale * sum[i], odd = f.scale * sum[i + 1];
      if (f.base != nullptr) {
        load_pair<kLanes>(f.base + i * kLanes, even, odd);
        even = f(sum[i], even), odd = f(sum[i + 1], odd);
      }
      store_pair<kLanes>(out + i * kLanes, even, odd);
    }
  } else if constexpr (kLanes == 1) {
    for (int i = 0; i < kVecs; ++i) {
      write(out + i, f.base == nullptr ? f.scale * sum[i] : f(sum[i], widen(f.base[i])));
    }
  } else if (f.base == nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) store<A, kLanes>(out + i * kLanes, f.scale * sum[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) {
      store<A, kLanes>(out + i * kLanes, f(sum[i], load_as<A, T, kLanes>(f.base + i * kLanes)));
    }
  }
}

// Columns [k, k + kLanes * kVecs) of out, from the sum over positions [begin, end), which is kept in
// registers. Each column is summed edge by edge, so that all SIMD levels give the same bits.
template <class T, class A, int kLanes, int kVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_columns(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k,
                              const Finish<T, A>& finish, Out* out) {
  if constexpr (std::is_same_v<T, bf16> && kVecs == 1 && kLanes > 1) {
    sum_columns<T, A, kLanes / 2, 2, kWeights>(s, begin, end, k, finish, out);
  } else {
    Vec<A, kLanes> sum[kVecs] = {};
    const int32_t* col = s.p.a.col;
    const T* x = s.p.x + k;
    constexpr int64_t kBytes = int64_t(kLanes) * kVecs * sizeof(T);
    for (int64_t p = begin; p < end; ++p) {
      if (p + s.ahead < s.p.a.nnz) {
        const int64_t c = col[p + s.ahead];
        const char* next = reinterpret_cast<const char*>(x + c * s.p.x_stride);
#pragma GCC unroll 16
        for (int64_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(next + byte);
        if (kWeights == Weights::kColumns && s.far_scale) __builtin_prefetch(s.p.a.col_scale + c);
      }
      const A weight = edge_weight<kWeights>(s.p.a, p, col[p]);
      add_row<T, A, kLanes, kVecs, kWeights>(sum, x + col[p] * s.p.x_stride, weight);
    }
    store_row<T, A, kLanes, kVecs>(out + k, sum, finish.columns_from(k));
  }
}

// The last d % kLanes columns: by one vector that overlaps columns already done (which get the same
// results again), or by narrower vectors where the whole row is shorter than one.
template <class T, class A, int kLanes, Weights kWeights, class Out>
MMSSL_INLINE void sum_tail(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k,
                           const Finish<T, A>& finish, Out* out) {
  const int64_t d = s.p.d;
  if (d >= kLanes) {
    if (k + kLanes <= d) {
      sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, k, finish, out);
      k += kLanes;
    }
    if (k < d) sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, d - kLanes, finish, out);
  } else if constexpr (kLanes > 1) {
    sum_tail<T, A, kLanes / 2, kWeights>(s, begin, end, k, finish, out);
  }
}

// A row of out from the sum over positions [begin, end), widest blocks first.
template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_row(const Spmm<T, A>& s, int64_t begin, int64_t end,
                          const Finish<T, A>& finish, Out* out) {
  const int64_t d = s.p.d;
  int64_t k = 0;
  for (; k + kMaxVecs * kLanes <= d; k += kMaxVecs * kLanes) {
    sum_columns<T, A, kLanes, kMaxVecs, kWeights>(s, begin, end, k, finish, out);
  }
  if constexpr (kMaxVecs > 8) {
    if (k + 8 * kLanes <= d) {
      sum_columns<T, A, kLanes, 8, kWeights>(s, begin, end, k, finish, out);
      k += 8 * kLanes;
    }
  }
  if (k + 4 * kLanes <= d) {
    sum_columns<T, A, kLanes, 4, kWeights>(s, begin, end, k, finish, out);
    k += 4 * kLanes;
  }
  if (k + 2 * kLanes <= d) {
    sum_columns<T, A, kLanes, 2, kWeights>(s, begin, end, k, finish, out);
    k += 2 * kLanes;
  }
  if (k < d) sum_tail<T, A, kLanes, kWeights>(s, begin, end, k, finish, out);
}

// Columns [0, d) of a row of y by Adam, from their gradient.
template <class A, int kLanes>
MMSSL_INLINE void update_row(const SparseProduct<A, A>& p, int64_t row, const A* grad, int64_t d) {
  const Adam<A> adam = p.epilogue.adam;
  const int64_t at = row * p.y_stride;
  int64_t k = 0;
  for (; k + kLanes <= d; k += kLanes) {
    const auto g = load<A, kLanes>(grad + k);
    auto mean = load<A, kLanes>(adam.mean + at + k), square = load<A, kLanes>(adam.square + at + k);
    mean += adam.share * (g - mean);
    square = adam.kept * square + adam.square_share * g * g;
    store<A, kLanes>(adam.mean + at + k, mean);
    store<A, kLanes>(adam.square + at + k, square);
    const auto size = square_root<A, kLanes>(square) * adam.root + adam.eps;
    store<A, kLanes>(p.y + at + k, load<A, kLanes>(p.y + at + k) - adam.rate * mean / size);
  }
  if constexpr (kLanes > 1) {
    if (k == d) return;
    SparseProduct<A, A> rest = p;
    rest.y += k, rest.epilogue.adam.mean += k, rest.epilogue.adam.square += k;
    update_row<A, 1>(rest, row, grad + k, d - k);
  }
}

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

// kVecs: the vectors of a row, or 0 for rows of any width. Most of the time of a short row is in
// what comes before and after its edges, so the copy of s, which no store can change, and the known
// width save a third of it.
template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights, int kVecs>
MMSSL_INLINE void run_rows(const Spmm<T, A> s, const Cut& from, const Cut& to) {
  const SparseArgs<A>& a = s.p.a;
  const int64_t d = s.p.d;
  const bool updates = std::is_same_v<T, A> && s.p.epilogue.adam.mean != nullptr;
  const std::unique_ptr<T[]> grad(updates ? new T[d] : nullptr);  // a row
  std::unique_ptr<A[]> own;  // sum and current chunk of a long row that no other task touches
  const int64_t last = to.slot < 0 ? to.row : to.row + 1;
  for (int64_t row = from.row; row < last; ++row) {
    const int64_t first = a.rowptr[row], end = a.rowptr[row + 1];
    if (end - first <= kChunkEdges) {
      T* y = updates ? grad.get() : s.p.y + row * s.p.y_stride;
      if constexpr (kVecs > 0) {
        sum_columns<T, A, kLanes, kVecs, kWeights>(s, first, end, 0, finish_of(s.p, row), y);
      } else {
        sum_row<T, A, kLanes, kMaxVecs, kWeights>(s, first, end, finish_of(s.p, row), y);
      }
      if constexpr (std::is_same_v<T, A>) {
        if (updates) update_row<A, kLanes>(s.p, row, y, kVecs > 0 ? kVecs * kLanes : d);
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

template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights>
MMSSL_INLINE bool run_task(const Spmm<T, A>& s, const Cut& from, const Cut& to) {
  if (!check(s.p.a, from, to)) return false;
  if (s.p.d == 4 * kLanes) {
    run_rows<T, A, kLanes, kMaxVecs, kWeights, 4>(s, from, to);
  } else if (s.p.d == 2 * kLanes) {
    run_rows<T, A, kLanes, kMaxVecs, kWeights, 2>(s, from, to);
  } else {
    run_rows<T, A, kLanes, kMaxVecs, kWeights, 0>(s, from, to);
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
