// The BPR loss of a batch on the results of propagate_layers, with the squares of the inputs' rows,
// and its gradient, on the CPU.
//
// Only the rows of the batch exist of results and their gradient; see rows.h. The gradient of the
// squares is part of a second table of such rows, which the last hop adds. The steps of the loss
// itself are those of ops/bpr.
#pragma once
#include <vector>

#include "ops/bpr/bpr.h"
#include "ops/propagate_layers/rows.h"

namespace mmssl {

// Triples (B) of rows, which the caller has checked.
struct Triples {
  const int64_t* user;
  const int64_t* pos;
  const int64_t* neg;
  int64_t count;  // B
};

namespace cpu {

// A batch by places among its distinct rows.
struct Places : Rows {
  Places(const Triples& batch, int64_t num_users, int64_t num_items)
      : Rows(num_users, num_items),
        user(this->users.add(batch.user, batch.count)),
        pos(this->items.add(batch.pos, batch.count)),
        neg(this->items.add(batch.neg, batch.count)) {}

  // The arguments of BPR on tables of the distinct rows.
  template <class A>
  BprArgs<A> args(const A* user_rows, const A* item_rows, int64_t d) const {
    return {user_rows,  item_rows,     user.data(),   pos.data(),          neg.data(),
            users.count(), items.count(), int64_t(user.size()), d};
  }

  std::vector<int64_t> user, pos, neg;  // (B)
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

// The gradient of x, from the distinct rows of the results and the slopes, goes to `out`; with
// moments, it updates `out`, which may be x. The scales of m are those of the transposed matrices.
// scratch: two tables and m.scratch() numbers.
template <class A>
bool put_gradient(const Layers<A>& m, const Places& places, Sides<const A> x, Sides<const A> found,
                  const A* slope, A grad_loss, A grad_squares, Sides<A> out,
                  const Moments<A>* moments, A* scratch, const Parallel& pool) {
  const int64_t size = table_size(m, places);
  const Sides<A> g = tables_at(scratch, m, places), last = tables_at(scratch + size, m, places);
  std::fill_n(g.user, m.d, A(0)), std::fill_n(g.item, m.d, A(0));
  bpr_backward(places.args<A>(found.user, found.item, m.d), grad_loss, A(0), slope, g.user + m.d,
               g.item + m.d, pool);
  const auto fill = [&](int64_t k, int64_t columns) {
    // scale * (g + M z) + rest = scale * (g + rest / scale + M z)
    const A decay = 2 * grad_squares / m.scale;
    add_rows(places.users, decay, x.user + k, g.user + k, last.user + k, m.d, columns);
    add_rows(places.items, decay, x.item + k, g.item + k, last.item + k, m.d, columns);
  };
  return spread_rows<A>(m, places, {g.user, g.item, m.d}, {last.user, last.item, m.d}, out,
                        moments, scratch + 2 * size, pool, fill);
}

// The gradient of x, from what the forward has written. The scales of m are those of the transposed
// matrices.
template <class A>
bool propagated_bpr_backward(const Layers<A>& m, const Triples& batch, Sides<const A> x,
                             Sides<const A> found, const A* slope, A grad_loss, A grad_squares,
                             Sides<A> out, const Parallel& pool) {
  if (!is_index(m, pool)) return false;
  const Places places(batch, m.ui.rows, m.iu.rows);
  const Buffer<A> scratch(2 * table_size(m, places) + m.scratch());
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
  const int64_t tables = 2 * table_size(m, places);
  const Buffer<A> buffer(batch.count + (users + items) * m.d + tables + m.scratch());
  A* const slope = buffer.get();
  const Sides<A> found{slope + batch.count, slope + batch.count + users * m.d, m.d};
  A* const scratch = found.item + items * m.d;
  const Sides<const A> from{x.user, x.item, x.stride}, rows{found.user, found.item, m.d};
  if (!find_rows(m, places, from, found, scratch + tables, pool)) return false;
  const A half = reg / A(2 * batch.count);
  evaluate_rows(places, from, rows, loss, l2, slope, pool);
  *l2 *= half;
  return put_gradient(transposed, places, from, rows, slope, A(1), half, x, &moments, scratch,
                      pool);
}

}  // namespace cpu
}  // namespace mmssl
