#include "host/index.h"

#include <algorithm>
#include <thread>

namespace mmssl::host {
namespace {

// A thread pays for itself from about this many edges; beyond a few threads memory is the limit.
constexpr int64_t kEdgesPerThread = 1 << 19;
constexpr int64_t kMaxThreads = 8;

int64_t num_threads(int64_t edges) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<int64_t>(edges / kEdgesPerThread, 1, std::min(cores, kMaxThreads));
}

// f(0), ..., f(threads - 1), each on a thread of its own.
template <class F>
void run(int64_t threads, const F& f) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  for (int64_t t = 1; t < threads; ++t) others.emplace_back([&f, t] { f(t); });
  f(0);
  for (auto& thread : others) thread.join();
}

int64_t part(int64_t total, int64_t t, int64_t threads) { return total * t / threads; }

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

// pointer[k] = number of ids below k. Threads share the keys, not the edges: each reads all ids and
// counts its own keys, so there is nothing to merge and no table per thread.
template <class Id>
Array<int64_t> count(const Id* ids, int64_t edges, int64_t keys, int64_t threads) {
  Array<int64_t> pointer(keys + 1, 0);
  run(threads, [&](int64_t t) {
    const int64_t low = part(keys, t, threads), high = part(keys, t + 1, threads);
    for (int64_t e = 0; e < edges; ++e) {
      if (ids[e] >= low && ids[e] < high) ++pointer[ids[e] + 1];
    }
  });
  for (int64_t k = 0; k < keys; ++k) pointer[k + 1] += pointer[k];
  return pointer;
}

// First key of part t when the keys are divided into parts of about equal numbers of edges.
int64_t key_part(const Array<int64_t>& pointer, int64_t t, int64_t threads) {
  const int64_t keys = static_cast<int64_t>(pointer.size()) - 1;
  if (t == 0) return 0;
  if (t == threads) return keys;
  const int64_t target = part(pointer.back(), t, threads);
  return std::min(keys, std::lower_bound(pointer.begin(), pointer.end(), target) - pointer.begin());
}

// Sorted, distinct rowptr and col of any edge list: a stable counting sort by item, then by user.
// Equal edges meet at the second, where all but the first are dropped.
void sort_by_user(Index& out, const int64_t* user, const int64_t* item, int64_t edges,
                  int64_t num_users, int64_t num_items, int64_t threads) {
  const Array<int64_t> by_item = count(item, edges, num_items, threads);
  Array<int32_t> users(edges);
  {
    Array<int64_t> next = by_item;
    run(threads, [&](int64_t t) {
      const int64_t low = key_part(by_item, t, threads), high = key_part(by_item, t + 1, threads);
      for (int64_t e = 0; e < edges; ++e) {
        if (item[e] >= low && item[e] < high) users[next[item[e]]++] = int32_t(user[e]);
      }
    });
  }
  const Array<int64_t> by_user = count(user, edges, num_users, threads);
  Array<int64_t> next = by_user;
  out.col.resize(edges);
  run(threads, [&](int64_t t) {
    const int64_t low = key_part(by_user, t, threads), high = key_part(by_user, t + 1, threads);
    for (int64_t i = 0; i < num_items; ++i) {
      for (int64_t p = by_item[i]; p < by_item[i + 1]; ++p) {
        const int32_t u = users[p];
        if (u < low || u >= high) continue;
        int64_t& end = next[u];
        if (end == by_user[u] || out.col[end - 1] != i) out.col[end++] = int32_t(i);
      }
    }
  });
  out.rowptr.resize(num_users + 1);
  int64_t kept = 0;
  for (int64_t u = 0; u < num_users; ++u) {
    out.rowptr[u] = kept;
    if (kept != by_user[u]) {
      std::copy(out.col.begin() + by_user[u], out.col.begin() + next[u], out.col.begin() + kept);
    }
    kept += next[u] - by_user[u];
  }
  out.rowptr[num_users] = kept;
  out.col.resize(kept);
}

// colptr, row and perm from rowptr and col: a counting sort by item that keeps the order of users.
void transpose(Index& out, int64_t num_users, int64_t num_items, int64_t threads) {
  const int64_t edges = static_cast<int64_t>(out.col.size());
  out.colptr = count(out.col.data(), edges, num_items, threads);
  out.row.resize(edges);
  out.perm.resize(edges);
  Array<int64_t> next = out.colptr;
  run(threads, [&](int64_t t) {
    const int64_t low = key_part(out.colptr, t, threads);
    const int64_t high = key_part(out.colptr, t + 1, threads);
    for (int64_t u = 0; u < num_users; ++u) {
      for (int64_t p = out.rowptr[u]; p < out.rowptr[u + 1]; ++p) {
        const int32_t i = out.col[p];
        if (i < low || i >= high) continue;
        const int64_t position = next[i]++;
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
    out.rowptr = count(user, edges, num_users, threads);
    out.col.resize(edges);
    run(threads, [&](int64_t t) {
      for (int64_t e = part(edges, t, threads); e < part(edges, t + 1, threads); ++e) {
        out.col[e] = int32_t(item[e]);
      }
    });
  } else {
    sort_by_user(out, user, item, edges, num_users, num_items, threads);
  }
  transpose(out, num_users, num_items, threads);
  return out;
}

}  // namespace mmssl::host
