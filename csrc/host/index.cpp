#include "host/index.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "host/threads.h"

namespace mmssl::host {
namespace {

struct Scan {
  int64_t bad_edge = -1;
  bool sorted = true;  // by user, then item, every edge once
};

Scan scan(const int64_t* user, const int64_t* item, int64_t edges, int64_t num_users,
          int64_t num_items, int64_t threads) {
  std::vector<Scan> found(threads);
  run(threads, [&](int64_t t) {
    Scan own;
    for (int64_t e = part(edges, t, threads); e < part(edges, t + 1, threads); ++e) {
      if (uint64_t(user[e]) >= uint64_t(num_users) || uint64_t(item[e]) >= uint64_t(num_items)) {
        own.bad_edge = e;
        break;
      }
      if (e > 0 && (user[e] < user[e - 1] || (user[e] == user[e - 1] && item[e] <= item[e - 1]))) {
        own.sorted = false;
      }
    }
    found[t] = own;
  });
  Scan out;
  for (const Scan& own : found) {
    if (own.bad_edge >= 0) return own;
    out.sorted = out.sorted && own.sorted;
  }
  return out;
}

// Edges are first distributed over buckets of neighboring keys, then counted and placed within a
// bucket: the writes of the first pass go to a few streams, those of the second stay in the
// second-level cache. A plain counting sort of 10M edges waits for memory at every edge.
constexpr int64_t kEdgesPerBucket = 1 << 15;
constexpr int64_t kMaxBuckets = 1 << 10;

// Buckets of 2^shift neighboring keys.
struct Buckets {
  Buckets(int64_t edges, int64_t keys) {
    const int64_t wanted = std::clamp<int64_t>(edges / kEdgesPerBucket, 1, kMaxBuckets);
    while ((keys >> shift) >= wanted && (keys >> shift) > 0) ++shift;
    count = (keys >> shift) + 1;
  }
  int64_t of(int64_t key) const { return key >> shift; }
  int shift = 0;
  int64_t count = 1;
};

// Distributes `edges` entries over buckets and keeps their order within each. each(t, f) calls f
// with every entry of part t in order; it is used once for counting and once for placing. Returns
// where each bucket starts, and the end.
template <class Entry, class Each>
std::vector<int64_t> distribute(Array<Entry>& out, int64_t edges, const Buckets& buckets,
                          int64_t threads, const Each& each) {
  std::vector<int64_t> next(threads * buckets.count, 0);
  run(threads, [&](int64_t t) {
    int64_t* own = next.data() + t * buckets.count;
    each(t, [&](const Entry& entry) { ++own[buckets.of(entry.key)]; });
  });
  std::vector<int64_t> start(buckets.count + 1, 0);
  int64_t total = 0;
  for (int64_t b = 0; b < buckets.count; ++b) {
    start[b] = total;
    for (int64_t t = 0; t < threads; ++t) {
      const int64_t count = next[t * buckets.count + b];
      next[t * buckets.count + b] = total;
      total += count;
    }
  }
  start[buckets.count] = total;
  out.resize(edges);
  run(threads, [&](int64_t t) {
    int64_t* own = next.data() + t * buckets.count;
    each(t, [&](const Entry& entry) { out[own[buckets.of(entry.key)]++] = entry; });
  });
  return start;
}

// Places every bucket: pointer[k] becomes the start of key k, and place(position, entry) is called
// for each entry with its position by key. Then done(first_key, last_key, next) with next[k] the
// end of key first_key + k. Buckets share nothing, so threads take them as they come.
template <class Entry, class Place, class Done>
void place_buckets(Array<int64_t>& pointer, int64_t keys, const Array<Entry>& entries,
                   const std::vector<int64_t>& start, const Buckets& buckets, int64_t threads,
                   const Place& place, const Done& done) {
  pointer.resize(keys + 1);
  pointer[keys] = start.back();
  std::atomic<int64_t> next_bucket{0};
  run(threads, [&](int64_t) {
    std::vector<int64_t> next;
    for (int64_t b; (b = next_bucket.fetch_add(1)) < buckets.count;) {
      const int64_t first = b << buckets.shift, last = std::min(keys, (b + 1) << buckets.shift);
      if (first >= last) continue;
      next.assign(last - first, 0);
      for (int64_t e = start[b]; e < start[b + 1]; ++e) ++next[entries[e].key - first];
      int64_t total = start[b];
      for (int64_t k = first; k < last; ++k) {
        pointer[k] = total;
        total += next[k - first];
        next[k - first] = pointer[k];
      }
      for (int64_t e = start[b]; e < start[b + 1]; ++e) {
        place(next[entries[e].key - first]++, entries[e]);
      }
      done(first, last, next);
    }
  });
}

// Sorted, distinct rowptr and col of any edge list.
void sort_by_user(Index& out, const int64_t* user, const int64_t* item, int64_t edges,
                  int64_t num_users, int64_t threads) {
  struct Entry {
    uint32_t key, item;
  };
  const Buckets buckets(edges, num_users);
  Array<Entry> entries;
  const auto start = distribute(entries, edges, buckets, threads, [&](int64_t t, const auto& f) {
    for (int64_t e = part(edges, t, threads); e < part(edges, t + 1, threads); ++e) {
      f(Entry{uint32_t(user[e]), uint32_t(item[e])});
    }
  });
  Array<int64_t> first_of;  // with the repeated edges still counted
  Array<int64_t> kept(num_users);
  out.col.resize(edges);
  int32_t* col = out.col.data();
  place_buckets(
      first_of, num_users, entries, start, buckets, threads,
      [&](int64_t position, const Entry& entry) { col[position] = int32_t(entry.item); },
      [&](int64_t first, int64_t last, const std::vector<int64_t>& end) {
        for (int64_t u = first; u < last; ++u) {
          int32_t *row = col + first_of[u], *row_end = col + end[u - first];
          if (!std::is_sorted(row, row_end)) std::sort(row, row_end);
          kept[u] = std::unique(row, row_end) - row;
        }
      });
  out.rowptr.resize(num_users + 1);
  int64_t total = 0;
  for (int64_t u = 0; u < num_users; ++u) {
    out.rowptr[u] = total;
    if (total != first_of[u]) std::copy_n(col + first_of[u], kept[u], col + total);
    total += kept[u];
  }
  out.rowptr[num_users] = total;
  out.col.resize(total);
}

// rowptr and col of edges that are sorted and distinct already.
void take_sorted(Index& out, const int64_t* user, const int64_t* item, int64_t edges,
                 int64_t num_users, int64_t threads) {
  out.rowptr.resize(num_users + 1);
  out.col.resize(edges);
  run(threads, [&](int64_t t) {
    for (int64_t e = part(edges, t, threads); e < part(edges, t + 1, threads); ++e) {
      out.col[e] = int32_t(item[e]);
      for (int64_t u = e == 0 ? 0 : user[e - 1] + 1; u <= user[e]; ++u) out.rowptr[u] = e;
    }
  });
  for (int64_t u = edges == 0 ? 0 : user[edges - 1] + 1; u <= num_users; ++u) out.rowptr[u] = edges;
}

// colptr, row and perm from rowptr and col: a plain counting sort. Threads share the items, not the
// edges: each reads all of col and counts and places its own items, so there is nothing to merge.
void transpose(Index& out, int64_t num_users, int64_t num_items, int64_t threads) {
  const int64_t edges = static_cast<int64_t>(out.col.size());
  const int32_t* col = out.col.data();
  out.colptr.assign(num_items + 1, 0);
  int64_t* next = out.colptr.data() + 1;  // counts, then starts, then ends: the pointers in the end
  run(threads, [&](int64_t t) {
    const int64_t low = part(num_items, t, threads), high = part(num_items, t + 1, threads);
    for (int64_t p = 0; p < edges; ++p) {
      if (col[p] >= low && col[p] < high) ++next[col[p]];
    }
  });
  int64_t total = 0;
  std::vector<int64_t> bound(threads + 1, num_items);  // items of a thread: equal numbers of edges
  for (int64_t i = 0, t = 0; i < num_items; ++i) {
    for (; t < threads && total >= part(edges, t, threads); ++t) bound[t] = i;
    total += std::exchange(next[i], total);
  }
  out.row.resize(edges);
  out.perm.resize(edges);
  run(threads, [&](int64_t t) {
    for (int64_t u = 0; u < num_users; ++u) {
      for (int64_t p = out.rowptr[u]; p < out.rowptr[u + 1]; ++p) {
        if (col[p] < bound[t] || col[p] >= bound[t + 1]) continue;
        const int64_t position = next[col[p]]++;
        out.row[position] = int32_t(u);
        out.perm[position] = p;
      }
    }
  });
}

}  // namespace

Index build_index(const int64_t* user, const int64_t* item, int64_t edges, int64_t num_users,
                  int64_t num_items) {
  const int64_t threads = num_threads(edges);
  Index out;
  const Scan found = scan(user, item, edges, num_users, num_items, threads);
  out.bad_edge = found.bad_edge;
  if (found.bad_edge >= 0) return out;
  if (found.sorted) {
    take_sorted(out, user, item, edges, num_users, threads);
  } else {
    sort_by_user(out, user, item, edges, num_users, threads);
  }
  transpose(out, num_users, num_items, threads);
  return out;
}

}  // namespace mmssl::host
