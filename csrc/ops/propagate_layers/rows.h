// Some rows of the results of propagate_layers, and its gradient from such rows, on the CPU.
//
// The last hop is computed for these rows only. Backward, the gradient of the results is zero in
// all other rows, so the first hop reads a small table that stays in the cache, and the later ones
// add its rows.
#pragma once
#include <cstring>
#include <vector>

#include "common/buffer.h"
#include "common/check_index.h"
#include "ops/propagate_layers/layers.h"

namespace mmssl {

// Ids of rows of both sides, which the caller has checked.
struct Ids {
  const int64_t* user;
  int64_t users;
  const int64_t* item;
  int64_t items;
};

namespace cpu {

// The distinct rows of a side in a batch, in the order in which they appear.
class Distinct {
 public:
  explicit Distinct(int64_t rows) : number_(rows, 0) {}

  // Returns the position of each id in the distinct rows.
  std::vector<int64_t> add(const int64_t* id, int64_t count) {
    std::vector<int64_t> place(count);
    for (int64_t n = 0; n < count; ++n) {
      int32_t& number = number_[id[n]];
      if (number == 0) {
        row_.push_back(int32_t(id[n])), times_.push_back(0);
        number = int32_t(row_.size());
      }
      place[n] = number - 1;
      ++times_[number - 1];
    }
    return place;
  }

  int64_t count() const { return int64_t(row_.size()); }
  const int32_t* row() const { return row_.data(); }        // (count)
  const int64_t* times() const { return times_.data(); }    // (count), in the batch
  const int32_t* number() const { return number_.data(); }  // (rows), place + 1, or 0

 private:
  std::vector<int32_t> row_, number_;
  std::vector<int64_t> times_;
};

// The distinct rows of both sides in a batch.
struct Rows {
  Rows(int64_t num_users, int64_t num_items) : users(num_users), items(num_items) {}
  Distinct users, items;
};

// Some rows of a matrix as a matrix of their own.
template <class A>
class RowsOfMatrix {
 public:
  RowsOfMatrix(const SparseArgs<A>& a, const Distinct& rows) : a_(a), rowptr_(1, 0) {
    a_.rows = rows.count();
    for (int64_t n = 0; n < a_.rows; ++n) {
      const int32_t row = rows.row()[n];
      rowptr_.push_back(rowptr_.back() + a.rowptr[row + 1] - a.rowptr[row]);
      if (a.row_scale != nullptr) row_scale_.push_back(a.row_scale[row]);
    }
    a_.nnz = rowptr_.back();
    col_ = Buffer<int32_t>(a_.nnz);
    if (a.value != nullptr) value_.resize(a_.nnz);
    for (int64_t n = 0; n < a_.rows; ++n) {
      const int64_t first = a.rowptr[rows.row()[n]], to = rowptr_[n], count = rowptr_[n + 1] - to;
      if (count > 0) std::memcpy(col_.get() + to, a.col + first, count * sizeof(int32_t));
      for (int64_t p = 0; a.value != nullptr && p < count; ++p) {
        value_[to + p] = a.value[a.edge == nullptr ? first + p : a.edge[first + p]];
      }
    }
    a_.rowptr = rowptr_.data(), a_.col = col_.get(), a_.edge = nullptr;
    if (a.row_scale != nullptr) a_.row_scale = row_scale_.data();
    if (a.value != nullptr) a_.value = value_.data();
  }
  const SparseArgs<A>& args() const { return a_; }

 private:
  SparseArgs<A> a_;
  std::vector<int64_t> rowptr_;
  std::vector<A> row_scale_, value_;
  Buffer<int32_t> col_;
};

// The same matrix for a table of the distinct rows of the other side behind a row of zeros, which
// stands for all others.
template <class A>
class ByNumber {
 public:
  ByNumber(const SparseArgs<A>& a, const Distinct& columns, const Parallel& pool)
      : a_(a), col_(a.nnz) {
    constexpr int64_t kEdges = 1 << 14;  // per task: some ten microseconds of work
    for_each_task(pool, (a.nnz + kEdges - 1) / kEdges, [&](int64_t task) {
      const int64_t end = std::min(a.nnz, (task + 1) * kEdges);
      for (int64_t p = task * kEdges; p < end; ++p) col_.get()[p] = columns.number()[a.col[p]];
    });
    a_.col = col_.get();
    a_.columns = columns.count() + 1;
    if (a.col_scale == nullptr) return;
    col_scale_.push_back(0);
    for (int64_t n = 0; n < columns.count(); ++n) {
      col_scale_.push_back(a.col_scale[columns.row()[n]]);
    }
    a_.col_scale = col_scale_.data();
  }
  const SparseArgs<A>& args() const { return a_; }

 private:
  SparseArgs<A> a_;
  Buffer<int32_t> col_;
  std::vector<A> col_scale_;
};

// Writes to `found` the distinct rows of the results. scratch: m.scratch() numbers. Returns false
// if the index is bad; see spmm.
template <class A>
bool find_rows(const Layers<A>& m, const Rows& places, Sides<const A> x, Sides<A> found,
               A* scratch, const Parallel& pool) {
  const RowsOfMatrix<A> ui(m.ui, places.users), iu(m.iu, places.items);
  return for_column_blocks<A>(m.d, pool, [&](int64_t k, int64_t columns, const auto& launch) {
    Layers<A> part = m;
    part.d = columns;
    const Sides<const A> own = x.columns_from(k);
    const auto hop = [&](int64_t l) {
      if (l < m.count) return Hop<A>{m.ui, m.iu, own};
      return Hop<A>{ui.args(), iu.args(), own, places.users.row(), places.items.row()};
    };
    run_chains(part, hop, own, found.columns_from(k), false, scratch + k * (m.scratch() / m.d),
               launch);
  });
}

// Whether every entry of the index that is read here, and not by spmm, is in range.
template <class A>
bool is_index(const Layers<A>& m, const Parallel& pool) {
  const auto good = [&](const SparseArgs<A>& a) {
    return ids_in_range(a.col, a.nnz, a.columns, pool) &&
           (a.edge == nullptr || ids_in_range(a.edge, a.nnz, a.nnz, pool));
  };
  return good(m.ui) && good(m.iu);
}

// Writes scale * (I + M + ... + M^L) times a table that has the rows of `first` to `out`; the last
// hop adds the rows of `last` in place of those of `first`. Both tables begin with a row of zeros
// for all other rows, and fill(k, columns) writes columns [k, k + columns) of them. With moments,
// what would be written is the gradient of `out`, which is updated. scratch: m.scratch() numbers.
template <class A, class Fill>
bool spread_rows(const Layers<A>& m, const Rows& places, Sides<const A> first, Sides<const A> last,
                 Sides<A> out, const Moments<A>* moments, A* scratch, const Parallel& pool,
                 const Fill& fill) {
  const ByNumber<A> ui(m.ui, places.items, pool), iu(m.iu, places.users, pool);
  return for_column_blocks<A>(m.d, pool, [&](int64_t k, int64_t columns, const auto& launch) {
    fill(k, columns);
    Layers<A> part = m;
    part.d = columns;
    const Sides<const A> own_first = first.columns_from(k), own_last = last.columns_from(k);
    Moments<A> own{};
    if (moments != nullptr) own = moments->columns_from(k);
    const auto hop = [&](int64_t l) {
      return Hop<A>{l == 1 ? ui.args() : m.ui,
                    l == 1 ? iu.args() : m.iu,
                    l == m.count ? own_last : own_first,
                    places.users.number(),
                    places.items.number(),
                    moments == nullptr ? nullptr : &own};
    };
    run_chains(part, hop, own_first, out.columns_from(k), moments == nullptr,
               scratch + k * (m.scratch() / m.d), launch);
  });
}

// Numbers of tables of the distinct rows behind a row of zeros.
template <class A>
int64_t table_size(const Layers<A>& m, const Rows& places) {
  return (places.users.count() + places.items.count() + 2) * m.d;
}

template <class A>
Sides<A> tables_at(A* memory, const Layers<A>& m, const Rows& places) {
  return {memory, memory + (places.users.count() + 1) * m.d, m.d};
}

// Writes the rows of the results with the given ids. Returns false if the index is bad; see spmm.
template <class A>
bool propagated_rows(const Layers<A>& m, const Ids& ids, Sides<const A> x, Sides<A> out,
                     const Parallel& pool) {
  if (m.ui.value != nullptr && !is_index(m, pool)) return false;
  Rows rows(m.ui.rows, m.iu.rows);
  const auto user = rows.users.add(ids.user, ids.users), item = rows.items.add(ids.item, ids.items);
  const Buffer<A> buffer(table_size(m, rows) + m.scratch());
  const Sides<A> found = tables_at(buffer.get(), m, rows);
  if (!find_rows(m, rows, x, found, buffer.get() + table_size(m, rows), pool)) return false;
  const auto copy = [&](const std::vector<int64_t>& place, const A* from, A* to) {
    for (size_t n = 0; n < place.size(); ++n) std::copy_n(from + place[n] * m.d, m.d, to + n * m.d);
  };
  copy(user, found.user, out.user), copy(item, found.item, out.item);
  return true;
}

// The gradient of x from those of the rows. The scales of m are those of the transposed matrices.
template <class A>
bool propagated_rows_backward(const Layers<A>& m, const Ids& ids, Sides<const A> grad, Sides<A> out,
                              const Parallel& pool) {
  if (!is_index(m, pool)) return false;
  Rows rows(m.ui.rows, m.iu.rows);
  const auto user = rows.users.add(ids.user, ids.users), item = rows.items.add(ids.item, ids.items);
  const int64_t size = table_size(m, rows);
  const Buffer<A> buffer(size + m.scratch());
  std::fill_n(buffer.get(), size, A(0));
  const Sides<A> g = tables_at(buffer.get(), m, rows);
  const auto add = [&](const std::vector<int64_t>& place, const A* from, A* to) {
    for (size_t n = 0; n < place.size(); ++n) {
      A* const row = to + (place[n] + 1) * m.d;
      for (int64_t k = 0; k < m.d; ++k) row[k] += from[n * m.d + k];
    }
  };
  add(user, grad.user, g.user), add(item, grad.item, g.item);
  const Sides<const A> sums{g.user, g.item, m.d};
  return spread_rows<A>(m, rows, sums, sums, out, nullptr, buffer.get() + size, pool,
                        [](int64_t, int64_t) {});
}

}  // namespace cpu
}  // namespace mmssl
