// Two passes over row-major (N, H) arrays: sums over the rows of every column, and the elements
// that depend on them. Both read whole rows in order, which suits the processor's prefetching;
// strips of columns that stay in a cache between the passes were slower.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "common/simd.h"
#include "ops/norm_act/columns.h"

namespace mmssl::cpu {

// Rows of a task. Each chunk has its own sums, which are added in the order of the chunks, so the
// result does not depend on the number of threads.
constexpr int64_t kChunkRows = 128;
// Rows whose sums are formed in A and then added in double, as in torch.
constexpr int64_t kBlockRows = 32;
// Rows that are processed together, so that the numbers of a column are loaded once for all of
// them.
constexpr int kRowsAtOnce = 4;
// Below this many elements per task a thread costs more than it saves.
constexpr int64_t kMinTaskElements = 1 << 14;

// A Job defines the sums and the results:
//
//   using Sum = A; static constexpr int kSums; int64_t rows(), columns();
//   auto terms<L>(first, column): operands of the sums of L columns, for the chunk that begins at `first`
//   void add<L>(terms, row, column, Vec<A, L> (&sums)[kSums])
//   void finish(column, ChunkSums): statistics of one column
//   auto factors<L>(column): operands of the results of L columns
//   void write<L>(factors, row, column)

// Calls f(column, lanes) for all columns, kLanes at a time and the last ones in narrower vectors.
template <int kLanes, class F>
MMSSL_INLINE void for_columns(int64_t columns, const F& f, int64_t column = 0) {
  for (; column + kLanes <= columns; column += kLanes) {
    f(column, std::integral_constant<int, kLanes>{});
  }
  if constexpr (kLanes > 1) {
    if (column < columns) for_columns<kLanes / 2>(columns, f, column);
  }
}

template <class Job, int kLanes, int kRows>
MMSSL_INLINE void add_rows(const Job& job, int64_t first, int64_t row, typename Job::Sum* partial) {
  using A = typename Job::Sum;
  const int64_t h = job.columns();
  for_columns<kLanes>(h, [&](int64_t column, auto lanes) MMSSL_INLINE_LAMBDA {
    constexpr int L = lanes;
    Vec<A, L> sum[Job::kSums];
    for (int k = 0; k < Job::kSums; ++k) sum[k] = load<A, L>(partial + k * h + column);
    const auto terms = job.template terms<L>(first, column);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) job.template add<L>(terms, row + r, column, sum);
    for (int k = 0; k < Job::kSums; ++k) store<A, L>(partial + k * h + column, sum[k]);
  });
}

// total (kSums, H) of a chunk; partial is scratch of the same size.
template <class Job, int kLanes>
MMSSL_INLINE void sum_chunk(const Job& job, int64_t first, double* total,
                            typename Job::Sum* partial) {
  const int64_t last = std::min(job.rows(), first + kChunkRows), count = Job::kSums * job.columns();
  std::fill(total, total + count, 0.0);
  for (int64_t begin = first; begin < last; begin += kBlockRows) {
    const int64_t end = std::min(last, begin + kBlockRows);
    std::fill(partial, partial + count, 0);
    int64_t row = begin;
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
      add_rows<Job, kLanes, kRowsAtOnce>(job, first, row, partial);
    }
    for (; row < end; ++row) add_rows<Job, kLanes, 1>(job, first, row, partial);
    for (int64_t i = 0; i < count; ++i) total[i] += partial[i];
  }
}

template <class Job, int kLanes, int kRows>
MMSSL_INLINE void write_rows(const Job& job, int64_t row) {
  for_columns<kLanes>(job.columns(), [&](int64_t column, auto lanes) MMSSL_INLINE_LAMBDA {
    constexpr int L = lanes;
    const auto factors = job.template factors<L>(column);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) job.template write<L>(factors, row + r, column);
  });
}

template <class Job, int kLanes>
MMSSL_INLINE void write_chunk(const Job& job, int64_t first) {
  const int64_t last = std::min(job.rows(), first + kChunkRows);
  int64_t row = first;
  for (; row + kRowsAtOnce <= last; row += kRowsAtOnce) {
    write_rows<Job, kLanes, kRowsAtOnce>(job, row);
  }
  for (; row < last; ++row) write_rows<Job, kLanes, 1>(job, row);
}

#define MMSSL_ENTRY(level, target, bytes)                                                     \
  template <class Job>                                                                        \
  target void sums_##level(const Job& job, int64_t first, double* total,                      \
                           typename Job::Sum* partial) {                                      \
    sum_chunk<Job, bytes / sizeof(typename Job::Sum)>(job, first, total, partial);            \
  }                                                                                           \
  template <class Job>                                                                        \
  target void writes_##level(const Job& job, int64_t first) {                                 \
    write_chunk<Job, bytes / sizeof(typename Job::Sum)>(job, first);                          \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

// Both passes of a job.
template <class Job>
void column_passes(Job& job, const Parallel& threads) {
  using A = typename Job::Sum;
  const int64_t h = job.columns(), chunks = (job.rows() + kChunkRows - 1) / kChunkRows;
  const Parallel pool = job.rows() * h < 2 * kMinTaskElements ? Parallel{} : threads;
  const auto sums = at_level(sums_default<Job>, sums_avx2<Job>, sums_avx512<Job>);
  const auto writes = at_level(writes_default<Job>, writes_avx2<Job>, writes_avx512<Job>);
  const int64_t count = Job::kSums * h;
  const std::unique_ptr<double[]> totals(new double[chunks * count]);
  const auto one = [&](int64_t) { return chunks; };  // both passes: the same thread, the same rows
  for_each_round(pool, 1, one, [&](int64_t, int64_t chunk) {
    const std::unique_ptr<A[]> partial(new A[count]);
    sums(job, chunk * kChunkRows, totals.get() + chunk * count, partial.get());
  });
  constexpr int64_t kTaskColumns = 256;
  for_each_task(pool, (h + kTaskColumns - 1) / kTaskColumns, [&](int64_t task) {
    const int64_t last = std::min(h, (task + 1) * kTaskColumns);
    for (int64_t column = task * kTaskColumns; column < last; ++column) {
      job.finish(column, ChunkSums(totals.get(), chunks, Job::kSums, h, column));
    }
  });
  for_each_round(pool, 1, one,
                 [&](int64_t, int64_t chunk) { writes(job, chunk * kChunkRows); });
}

}  // namespace mmssl::cpu
