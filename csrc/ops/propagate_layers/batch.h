// The BPR loss of a batch on the results of propagate_layers, with the squares of the inputs' rows,
// and its gradient, on the CPU.
//
// The last hop is computed for the rows of the batch only. Backward, the gradient of the results is
// zero in all other rows, so the first hop reads a small table that stays in the cache. The gradient
// of the squares is part of a second such table, which the last hop adds. The steps of the loss
// itself are those of ops/bpr.
#pragma once
#include <cstring>
#include <vector>

#include "common/buffer.h"
#include "common/check_index.h"
#include "ops/bpr/bpr.h"
#include "ops/propagate_layers/layers.h"

namespace mmssl {

// Triples (B) of rows, which the caller has checked.
struct Triples {
  const int64_t* user;
  const int64_t* pos;
  const int64_t* neg;
  int64_t count;  // B
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

// A batch by places among its distinct rows.
struct Places {
  Places(const Triples& batch, int64_t users, int64_t items)
      : users(users),
        items(items),
        user(this->users.add(batch.user, batch.count)),
        pos(this->items.add(batch.pos, batch.count)),
        neg(this->items.add(batch.neg, batch.count)) {}

  // The arguments of BPR on tables of the distinct rows.
  template <class A>
  BprArgs<A> args(const A* user_rows, const A* item_rows, int64_t d) const {
    return {user_rows,  item_rows,     user.data(),   pos.data(),          neg.data(),
            users.count(), items.count(), int64_t(user.size()), d};
  }

  Distinct users, items;
  std::vector<int64_t> user, pos, neg;  // (B)
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

constexpr int64_t kRowsAhead = 8;  // rows of a batch that are prefetched, since they are far apart

template <class A>
void prefetch_row(const Distinct& rows, int64_t n, const A* x, int64_t d) {
  if (n >= rows.count()) return;
  const char* row = reinterpret_cast<const char*>(x + rows.row()[n] * d);
  const int64_t bytes = std::min<int64_t>(d * sizeof(A), 512);
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte);
}

// The sum of the squares of the batch's rows of a table, in 16 running sums a row.
template <class A>
double sum_squares(const Distinct& rows, const A* x, int64_t d) {
  double total = 0;
  for (int64_t n = 0; n < rows.count(); ++n) {
    prefetch_row(rows, n + kRowsAhead, x, d);
    const A* row = x + rows.row()[n] * d;
    A sums[16] = {};
    int64_t k = 0;
    for (; k + 16 <= d; k += 16) {
      for (int i = 0; i < 16; ++i) sums[i] += row[k + i] * row[k + i];
    }
    for (int i = 0; k < d; ++k, ++i) sums[i] += row[k] * row[k];
    A sum = 0;
    for (int i = 0; i < 16; ++i) sum += sums[i];
    total += double(rows.times()[n]) * sum;
  }
  return total;
}

// Writes to `found` the distinct rows of the results. scratch: m.scratch() numbers. Returns false if
// the index is bad; see spmm.
template <class A>
bool find_rows(const Layers<A>& m, const Places& places, Sides<const A> x, Sides<A> found,
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
    run_chains(part, hop, own, found.columns_from(k), scratch + k * (m.scratch() / m.d), launch);
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

// The loss on the distinct rows of the results with its slopes (B) of bpr.h, and the squares of the
// rows of x.
template <class A>
void evaluate_rows(const Places& places, Sides<const A> x, Sides<const A> found, A* loss,
                   A* squares, A* slope, const Parallel& pool) {
  const int64_t d = x.stride;
  A unused;
  bpr_forward(places.args<A>(found.user, found.item, d), loss, &unused, slope, pool);
  *squares = A(sum_squares(places.users, x.user, d) + sum_squares(places.items, x.item, d));
}

// Writes the loss on the results, the squares of the rows of x (U, D) and (I, D), the slopes (B) of
// bpr.h, and to `found` (B, D) and (2 B, D) the distinct rows of the results, followed by zeros.
// Returns false if the index is bad; see spmm.
template <class A>
bool propagated_bpr(const Layers<A>& m, const Triples& batch, Sides<const A> x, Sides<A> found,
                    A* loss, A* squares, A* slope, const Parallel& pool) {
  if (m.ui.value != nullptr && !is_index(m, pool)) return false;
  const Places places(batch, m.ui.rows, m.iu.rows);
  const Buffer<A> scratch(m.scratch());
  if (!find_rows(m, places, x, found, scratch.get(), pool)) return false;
  const auto clear = [&](A* table, int64_t from, int64_t to) {
    std::fill(table + from * m.d, table + to * m.d, A(0));
  };
  clear(found.user, places.users.count(), batch.count);
  clear(found.item, places.items.count(), 2 * batch.count);
  evaluate_rows(places, x, {found.user, found.item, m.d}, loss, squares, slope, pool);
  return true;
}

// total = grad + factor * times * x for the distinct rows of x, in tables that begin with a row of
// zeros for all others.
template <class A>
void add_rows(const Distinct& rows, A factor, const A* x, const A* grad, A* total, int64_t d,
              int64_t columns) {
  std::fill_n(total, columns, A(0));
  for (int64_t n = 0; n < rows.count(); ++n) {
    prefetch_row(rows, n + kRowsAhead, x, d);
    const A weight = factor * A(rows.times()[n]);
    const A* from = x + rows.row()[n] * d;
    grad += d, total += d;
    for (int64_t k = 0; k < columns; ++k) total[k] = grad[k] + weight * from[k];
  }
}

// Numbers that put_gradient needs.
template <class A>
int64_t gradient_scratch(const Layers<A>& m, const Places& places) {
  return 2 * (places.users.count() + places.items.count() + 2) * m.d + m.scratch();
}

// The gradient of x, from the distinct rows of the results and the slopes, goes to `out`; with
// moments, it updates `out`, which may be x. The scales of m are those of the transposed matrices.
template <class A>
bool put_gradient(const Layers<A>& m, const Places& places, Sides<const A> x, Sides<const A> found,
                  const A* slope, A grad_loss, A grad_squares, Sides<A> out,
                  const Moments<A>* moments, A* scratch, const Parallel& pool) {
  const ByNumber<A> ui(m.ui, places.items, pool), iu(m.iu, places.users, pool);
  const int64_t users = places.users.count() + 1, items = places.items.count() + 1;
  const int64_t some = users + items;
  const Sides<A> g{scratch, scratch + users * m.d, m.d};
  const Sides<A> last_g{g.user + some * m.d, g.item + some * m.d, m.d};
  A* const pair = last_g.user + some * m.d;
  std::fill_n(g.user, m.d, A(0)), std::fill_n(g.item, m.d, A(0));
  bpr_backward(places.args<A>(found.user, found.item, m.d), grad_loss, A(0), slope, g.user + m.d,
               g.item + m.d, pool);
  return for_column_blocks<A>(m.d, pool, [&](int64_t k, int64_t columns, const auto& launch) {
    // scale * (g + M z) + rest = scale * (g + rest / scale + M z)
    const A decay = 2 * grad_squares / m.scale;
    add_rows(places.users, decay, x.user + k, g.user + k, last_g.user + k, m.d, columns);
    add_rows(places.items, decay, x.item + k, g.item + k, last_g.item + k, m.d, columns);
    Layers<A> part = m;
    part.d = columns;
    const Sides<const A> first{g.user + k, g.item + k, m.d};
    const Sides<const A> last{last_g.user + k, last_g.item + k, m.d};
    Moments<A> own{};
    if (moments != nullptr) own = moments->columns_from(k);
    const auto hop = [&](int64_t l) {
      return Hop<A>{l == 1 ? ui.args() : m.ui,
                    l == 1 ? iu.args() : m.iu,
                    l == m.count ? last : first,
                    places.users.number(),
                    places.items.number(),
                    moments == nullptr ? nullptr : &own};
    };
    run_chains(part, hop, first, out.columns_from(k), pair + k * (m.scratch() / m.d), launch);
  });
}

// The gradient of x, from what the forward has written. The scales of m are those of the transposed
// matrices.
template <class A>
bool propagated_bpr_backward(const Layers<A>& m, const Triples& batch, Sides<const A> x,
                             Sides<const A> found, const A* slope, A grad_loss, A grad_squares,
                             Sides<A> out, const Parallel& pool) {
  if (!is_index(m, pool)) return false;
  const Places places(batch, m.ui.rows, m.iu.rows);
  const Buffer<A> scratch(gradient_scratch(m, places));
  return put_gradient<A>(m, places, x, found, slope, grad_loss, grad_squares, out, nullptr,
                         scratch.get(), pool);
}

// A step of Adam on loss + reg / (2 B) * squares, which are those of propagated_bpr, for the tables
// x. Nothing is changed if the index is bad.
template <class A>
bool propagated_bpr_step(const Layers<A>& m, const Triples& batch, Sides<A> x,
                         const Moments<A>& moments, A reg, A* loss, A* l2, const Parallel& pool) {
  if (!is_index(m, pool)) return false;
  const Places places(batch, m.ui.rows, m.iu.rows);
  Layers<A> transposed = m;
  transposed.ui.row_scale = m.iu.col_scale, transposed.ui.col_scale = m.iu.row_scale;
  transposed.iu.row_scale = m.ui.col_scale, transposed.iu.col_scale = m.ui.row_scale;
  // One allocation: the hops of both directions use the same part of it.
  const int64_t users = places.users.count(), items = places.items.count();
  const Buffer<A> buffer(batch.count + (users + items) * m.d + gradient_scratch(m, places));
  A* const slope = buffer.get();
  const Sides<A> found{slope + batch.count, slope + batch.count + users * m.d, m.d};
  A* const scratch = found.item + items * m.d;
  const Sides<const A> from{x.user, x.item, x.stride}, rows{found.user, found.item, m.d};
  if (!find_rows(m, places, from, found, scratch + (gradient_scratch(m, places) - m.scratch()), pool))
    return false;
  const A half = reg / A(2 * batch.count);
  evaluate_rows(places, from, rows, loss, l2, slope, pool);
  *l2 *= half;
  return put_gradient(transposed, places, from, rows, slope, A(1), half, x, &moments, scratch, pool);
}

}  // namespace cpu
}  // namespace mmssl
