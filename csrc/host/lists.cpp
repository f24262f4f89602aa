#include "host/lists.h"

#include <algorithm>
#include <utility>

#include "common/check_index.h"
#include "host/threads.h"

namespace mmssl::host {
namespace {

// The items of one user: those of the list, or the other edges if it has none.
template <class F>
void for_each_item(const int32_t* list, int64_t k, const Csr& other, int64_t user, const F& f) {
  bool empty = true;
  for (int64_t j = 0; j < k; ++j) {
    if (list[j] < 0) continue;
    empty = false;
    f(list[j]);
  }
  if (!empty) return;
  for (int64_t p = other.rowptr[user]; p < other.rowptr[user + 1]; ++p) f(other.col[p]);
}

}  // namespace

// Two stable counting sorts: by item with the users in order, then back by user with the items in
// order. Every thread has a range of users, so it writes separate entries in both forms.
Index index_of_lists(const int32_t* lists, int64_t k, const Csr& other) {
  const int64_t users = other.rows, items = other.columns;
  const int64_t threads = num_threads(users * k + other.rowptr[users]);
  Index out;
  if (!is_rowptr(other.rowptr, users, other.nnz)) {
    out.bad_other = true;
    return out;
  }
  out.rowptr.resize(users + 1);
  std::vector<int64_t> next(threads * items, 0), bad(threads, -1);
  std::vector<char> bad_other(threads, 0);
  run(threads, [&](int64_t t) {
    int64_t* count = next.data() + t * items;
    for (int64_t u = part(users, t, threads); u < part(users, t + 1, threads); ++u) {
      const int32_t* list = lists + u * k;
      uint32_t largest = 0;  // item plus one; computed without a branch, so that the loop vectorizes
      for (int64_t j = 0; j < k; ++j) largest = std::max(largest, uint32_t(list[j]) + 1);
      if (largest > uint64_t(items)) {
        bad[t] = u * k;
        while (uint32_t(lists[bad[t]]) + 1 <= uint64_t(items)) ++bad[t];
        return;
      }
      int64_t degree = 0;
      for_each_item(list, k, other, u, [&](int32_t item) {
        if (uint64_t(item) >= uint64_t(items)) {
          bad_other[t] = 1;
          return;
        }
        ++count[item], ++degree;
      });
      out.rowptr[u] = degree;
    }
  });
  for (int64_t t = 0; t < threads; ++t) {
    if (bad[t] < 0 && !bad_other[t]) continue;
    out.bad_edge = bad[t], out.bad_other = bad_other[t];
    return out;
  }
  out.colptr.resize(items + 1);
  int64_t total = 0;
  for (int64_t i = 0; i < items; ++i) {
    out.colptr[i] = total;
    for (int64_t t = 0; t < threads; ++t) total += std::exchange(next[t * items + i], total);
  }
  out.colptr[items] = total;
  out.row.resize(total);
  run(threads, [&](int64_t t) {
    int64_t* place = next.data() + t * items;
    for (int64_t u = part(users, t, threads); u < part(users, t + 1, threads); ++u) {
      for_each_item(lists + u * k, k, other, u,
                    [&](int32_t item) { out.row[place[item]++] = int32_t(u); });
    }
  });
  std::vector<int64_t> place(users);
  total = 0;
  for (int64_t u = 0; u < users; ++u) {
    place[u] = total;
    total += std::exchange(out.rowptr[u], total);
  }
  out.rowptr[users] = total;
  out.col.resize(total);
  run(threads, [&](int64_t t) {
    // Where the users of this range end within an item, and so those of the next begin.
    const int64_t* end = next.data() + t * items;
    const int64_t* begin = t == 0 ? out.colptr.data() : end - items;
    for (int64_t i = 0; i < items; ++i) {
      for (int64_t p = begin[i]; p < end[i]; ++p) out.col[place[out.row[p]]++] = int32_t(i);
    }
  });
  return out;
}

RowEdges edges_of_rows(const Csr& matrix, const int64_t* rows, int64_t num_rows) {
  RowEdges out;
  out.rowptr.resize(num_rows + 1);
  int64_t total = 0;
  for (int64_t b = 0; b < num_rows; ++b) {
    if (rows[b] < 0 || rows[b] >= matrix.rows) {
      out.bad_row = b;
      return out;
    }
    out.rowptr[b] = total;
    const int64_t first = matrix.rowptr[rows[b]], end = matrix.rowptr[rows[b] + 1];
    if (first < 0 || end < first || end > matrix.nnz ||
        !ids_in_range(matrix.col + first, end - first, matrix.columns)) {
      out.bad_matrix = true;
      return out;
    }
    total += end - first;
  }
  out.rowptr[num_rows] = total;
  out.position.resize(total), out.item.resize(total), out.col.resize(total);
  std::vector<int64_t> next(matrix.columns, 0);
  for (int64_t b = 0, n = 0; b < num_rows; ++b) {
    for (int64_t p = matrix.rowptr[rows[b]]; p < matrix.rowptr[rows[b] + 1]; ++p, ++n) {
      const int32_t item = matrix.col[p];
      out.position[n] = b, out.item[n] = item, out.col[n] = item;
      ++next[item];
    }
  }
  out.t_rowptr.resize(matrix.columns + 1);
  total = 0;
  for (int64_t i = 0; i < matrix.columns; ++i) {
    out.t_rowptr[i] = total;
    total += std::exchange(next[i], total);
  }
  out.t_rowptr[matrix.columns] = total;
  out.t_col.resize(total), out.t_edge.resize(total);
  for (int64_t n = 0; n < total; ++n) {
    const int64_t place = next[out.col[n]]++;
    out.t_col[place] = int32_t(out.position[n]), out.t_edge[place] = n;
  }
  return out;
}

}  // namespace mmssl::host
