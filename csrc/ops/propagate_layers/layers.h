// All hops of a LightGCN and their scaled sum, for both devices, from the products of spmm.h.
//
//   out = scale * (x + M x + ... + M^L x) = scale * (x + M (x + M (x + ...)))
//
// on pairs of tables: M (user, item) = (ui item, iu user). U users, I items, D features, L layers.
// The two products of a hop are one batch. The right-hand form needs no sum next to the tables of
// the hops. Every hop but the last stores its rows times the column scale of the next one, which
// then adds them up as they are.
#pragma once
#include <algorithm>
#include <atomic>
#include <span>

#include "ops/propagate/spmm.h"

namespace mmssl {

template <class A>
struct Layers {
  SparseArgs<A> ui, iu;  // (U, I) and (I, U)
  int64_t d = 0;
  int64_t count = 1;  // L, at least 1
  A scale = 1;

  int64_t size() const { return (ui.rows + iu.rows) * d; }
  // Numbers of a table pair for the hops between the first and the last.
  int64_t scratch() const { return count > 1 ? size() : 0; }
  // Of a table for either side.
  int64_t one_table() const { return count > 1 ? std::max(ui.rows, iu.rows) * d : 0; }
};

// A table pair, whose rows are `stride` numbers apart.
template <class A>
struct Sides {
  A* user;  // (U, D)
  A* item;  // (I, D)
  int64_t stride;

  Sides columns_from(int64_t k) const { return {user + k, item + k, stride}; }
};

// The moments of a table pair, which lie as the tables do; CPU only.
template <class A>
struct Moments {
  Sides<A> mean, square;
  Adam<A> rates;

  Adam<A> of(bool for_users) const {
    Adam<A> adam = rates;
    adam.mean = for_users ? mean.user : mean.item;
    adam.square = for_users ? square.user : square.item;
    return adam;
  }
  Moments columns_from(int64_t k) const {
    return {mean.columns_from(k), square.columns_from(k), rates};
  }
};

// What a hop multiplies, and the rows that it adds: row r of a product gets row user_row[r] or
// item_row[r] of base, or r itself without such a map. With moments, the last hop is a gradient, by
// which the output is updated.
template <class A>
struct Hop {
  SparseArgs<A> ui, iu;
  Sides<const A> base;
  const int32_t* user_row = nullptr;
  const int32_t* item_row = nullptr;
  const Moments<A>* moments = nullptr;
};

// The product of hop number l for one side, from the other side of the hop before.
template <class A>
SparseProduct<A, A> product_of(const Layers<A>& m, const Hop<A>& hop, int64_t l, bool for_users,
                               const A* x, int64_t x_stride, A* y, int64_t y_stride) {
  SparseArgs<A> a = for_users ? hop.ui : hop.iu;
  if (l > 1) a.col_scale = nullptr;
  Epilogue<A, A> e{for_users ? hop.base.user : hop.base.item, hop.base.stride};
  e.base_row = for_users ? hop.user_row : hop.item_row;
  if (l == m.count) {
    e.scale = m.scale;
    if (hop.moments != nullptr) e.adam = hop.moments->of(for_users);
  } else {
    e.factor = for_users ? m.iu.col_scale : m.ui.col_scale;
  }
  return {a, x, y, m.d, x_stride, y_stride, e};
}

// Hop by hop, both sides at once: `launch` takes the products of a hop as a span. scratch:
// m.scratch() numbers, which the hops write in turn with out. No table may overlap another.
template <class A, class Launch>
void run_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                const Launch& launch) {
  const Sides<A> pair{scratch, scratch + m.ui.rows * m.d, m.d};
  const Hop<A> hop{m.ui, m.iu, x};
  Sides<const A> z = x;
  for (int64_t l = 1; l <= m.count; ++l) {
    const Sides<A> y = (m.count - l) % 2 == 0 ? out : pair;
    const SparseProduct<A, A> products[] = {
        product_of(m, hop, l, true, z.item, z.stride, y.user, y.stride),
        product_of(m, hop, l, false, z.user, z.stride, y.item, y.stride)};
    launch(std::span<const SparseProduct<A, A>>(products));
    z = {y.user, y.item, y.stride};
  }
}

namespace cpu {

// The hops 1 to m.count from x to out, for callers with a cache. A side depends on the other side of
// the hop before and on nothing else of that hop, so that the products form two chains of L. One
// after the other needs fewer tables, and each reads what the one before has just written.
//
// hop(l) is the Hop number l; its column scales matter for the first one only. No table may overlap
// another. If out has all rows and is not an input either, the hops that end on the side of the last
// one write to it as well, so that a chain needs one table more, of the other side.
//
// scratch: m.scratch() numbers, or with out_has_room m.one_table().
template <class A, class HopOf, class Launch>
void run_chains(const Layers<A>& m, const HopOf& hop, Sides<const A> x, Sides<A> out,
                bool out_has_room, A* scratch, const Launch& launch) {
  const int64_t users = out_has_room || scratch == nullptr ? 0 : m.ui.rows * m.d;
  const Sides<A> pair{scratch, scratch + users, m.d};
  for (const bool last_is_user : {true, false}) {
    Sides<const A> z = x;
    for (int64_t l = 1; l <= m.count; ++l) {
      const bool on_last_side = (m.count - l) % 2 == 0;
      const bool for_users = last_is_user == on_last_side;
      const Sides<A> y = l == m.count || (out_has_room && on_last_side) ? out : pair;
      const SparseProduct<A, A> product =
          product_of(m, hop(l), l, for_users, for_users ? z.item : z.user, z.stride,
                     for_users ? y.user : y.item, y.stride);
      launch(std::span(&product, 1));
      z = {y.user, y.item, y.stride};
    }
  }
}

// Calls run(first column, number of columns, launch) until all columns are done, and returns false
// if the index is bad; see spmm. `launch` is for run_chains.
//
// Where the columns can be divided into whole cache lines, a thread takes its columns through all
// hops: it then reads only what it has written, which matters most where threads have no
// last-level cache in common, and does not wait for the others.
template <class A, class Run>
bool for_column_blocks(int64_t d, const Parallel& pool, const Run& run) {
  constexpr int64_t kLine = 64 / sizeof(A);
  std::atomic<bool> good = true;
  const auto launch_on = [&](const Parallel& threads) {
    return [&good, &threads](std::span<const SparseProduct<A, A>> products) {
      if (!spmm(products, threads)) good.store(false, std::memory_order_relaxed);
    };
  };
  const int64_t blocks = d % (pool.threads * kLine) == 0 ? pool.threads : 1;
  if (blocks == 1) {
    run(0, d, launch_on(pool));
    return good;
  }
  const Parallel alone;
  for_each_task(pool, blocks, [&](int64_t block) {
    run(block * (d / blocks), d / blocks, launch_on(alone));
  });
  return good;
}

// scratch: m.one_table() numbers.
template <class A>
bool propagate_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                      const Parallel& pool) {
  return for_column_blocks<A>(m.d, pool, [&](int64_t k, int64_t columns, const auto& launch) {
    Layers<A> part = m;
    part.d = columns;
    A* own = m.count > 1 ? scratch + k * (m.one_table() / m.d) : nullptr;
    const Sides<const A> from = x.columns_from(k);
    const auto hop = [&](int64_t) { return Hop<A>{m.ui, m.iu, from}; };
    run_chains(part, hop, from, out.columns_from(k), true, own, launch);
  });
}

}  // namespace cpu
}  // namespace mmssl
