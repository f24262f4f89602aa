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
  // Numbers of the table pair that the hops write in turn with the result.
  int64_t scratch() const { return count > 1 ? size() : 0; }
};

// A table pair, whose rows are `stride` numbers apart.
template <class A>
struct Sides {
  A* user;  // (U, D)
  A* item;  // (I, D)
  int64_t stride;

  Sides columns_from(int64_t k) const { return {user + k, item + k, stride}; }
};

// What a hop multiplies, and the rows that it adds: row r of a product gets row user_row[r] or
// item_row[r] of base, or r itself without such a map.
template <class A>
struct Hop {
  SparseArgs<A> ui, iu;
  Sides<const A> base;
  const int32_t* user_row = nullptr;
  const int32_t* item_row = nullptr;
};

// The hops 1 to m.count from x to out. hop(l) is the Hop number l; its column scales matter for the
// first one only. Hops before the last write, in turn, to `last` and, before that, to `other`, which
// has a use from three hops on. Neither may overlap what a hop reads; out may be one of them.
// `launch` takes the products of a hop as a span.
template <class A, class HopOf, class Launch>
void run_hops(const Layers<A>& m, const HopOf& hop, Sides<const A> x, Sides<A> out, Sides<A> last,
              Sides<A> other, const Launch& launch) {
  Sides<const A> z = x;
  for (int64_t l = 1; l <= m.count; ++l) {
    Hop<A> h = hop(l);
    if (l > 1) h.ui.col_scale = h.iu.col_scale = nullptr;
    const int64_t left = m.count - l;
    const Sides<A> y = left == 0 ? out : left % 2 == 1 ? last : other;
    Epilogue<A, A> user{h.base.user, h.base.stride}, item{h.base.item, h.base.stride};
    user.base_row = h.user_row, item.base_row = h.item_row;
    if (left == 0) {
      user.scale = item.scale = m.scale;
    } else {
      user.factor = m.iu.col_scale, item.factor = m.ui.col_scale;
    }
    const SparseProduct<A, A> products[] = {{h.ui, z.item, y.user, m.d, z.stride, y.stride, user},
                                            {h.iu, z.user, y.item, m.d, z.stride, y.stride, item}};
    launch(std::span<const SparseProduct<A, A>>(products));
    z = {y.user, y.item, y.stride};
  }
}

// scratch: m.scratch() numbers. No table may overlap another.
template <class A, class Launch>
void run_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                const Launch& launch) {
  const auto hop = [&](int64_t) { return Hop<A>{m.ui, m.iu, x}; };
  run_hops(m, hop, x, out, Sides<A>{scratch, scratch + m.ui.rows * m.d, m.d}, out, launch);
}

namespace cpu {

// Calls run(first column, number of columns, launch) until all columns are done, and returns false
// if the index is bad; see spmm. `launch` is for run_hops.
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

template <class A>
bool propagate_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                      const Parallel& pool) {
  return for_column_blocks<A>(m.d, pool, [&](int64_t k, int64_t columns, const auto& launch) {
    Layers<A> part = m;
    part.d = columns;
    A* own = scratch + (m.count > 1 ? k * (m.ui.rows + m.iu.rows) : 0);
    run_layers(part, x.columns_from(k), out.columns_from(k), own, launch);
  });
}

}  // namespace cpu
}  // namespace mmssl
