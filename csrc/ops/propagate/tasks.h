// What the sparse kernels share: how far ahead they prefetch, how they divide a matrix into tasks,
// and the check of the part of the index that a task follows.
#pragma once
#include <algorithm>

#include "common/check_index.h"
#include "common/simd.h"
#include "ops/propagate/partition.h"

namespace mmssl::cpu {

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

// A task checks its own part of the index before it follows it. Its thread is about to read that
// part anyway, so the check costs next to nothing.
template <class A>
MMSSL_INLINE bool check(const SparseArgs<A>& a, const Cut& from, const Cut& to) {
  const int64_t begin = from.position, count = to.position - begin;
  return mmssl::ids_in_range(a.col + begin, count, a.columns) &&
         (a.edge == nullptr || mmssl::ids_in_range(a.edge + begin, count, a.nnz));
}

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

}  // namespace mmssl::cpu
