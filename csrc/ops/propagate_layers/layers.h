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
  // Numbers that the hops between the first and the last need: two tables at a time.
  int64_t scratch() const { return std::min<int64_t>(count - 1, 2) * size(); }
};

// A table pair, whose rows are `stride` numbers apart.
template <class A>
struct Sides {
  A* user;  // (U, D)
  A* item;  // (I, D)
  int64_t stride;

  Sides columns_from(int64_t k) const { return {user + k, item + k, stride}; }
};

// scratch: m.scratch() numbers. `launch` takes the products of a hop as a span. No table may overlap
// another.
template <class A, class Launch>
void run_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                const Launch& launch) {
  SparseArgs<A> ui = m.ui, iu = m.iu;
  Sides<const A> z = x;
  for (int64_t l = 1; l <= m.count; ++l) {
    const bool last = l == m.count;
    A* free = scratch + (l - 1) % 2 * m.size();
    const Sides<A> y = last ? out : Sides<A>{free, free + m.ui.rows * m.d, m.d};
    Epilogue<A, A> user{x.user, x.stride, m.iu.col_scale}, item{x.item, x.stride, m.ui.col_scale};
    if (last) {
      user.factor = item.factor = nullptr;
      user.scale = item.scale = m.scale;
    }
    const SparseProduct<A, A> products[] = {{ui, z.item, y.user, m.d, z.stride, y.stride, user},
                                            {iu, z.user, y.item, m.d, z.stride, y.stride, item}};
    launch(std::span<const SparseProduct<A, A>>(products));
    ui.col_scale = iu.col_scale = nullptr;
    z = {y.user, y.item, y.stride};
  }
}

namespace cpu {

// Returns false if the index is bad; see spmm.
//
// Where the columns can be divided into whole cache lines, a thread takes its columns through all
// hops: it then reads only what it has written, which matters most where threads have no
// last-level cache in common, and does not wait for the others.
template <class A>
bool propagate_layers(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch,
                      const Parallel& pool) {
  constexpr int64_t kLine = 64 / sizeof(A);
  std::atomic<bool> good = true;
  const auto launch_on = [&](const Parallel& threads) {
    return [&good, &threads](std::span<const SparseProduct<A, A>> products) {
      if (!spmm(products, threads)) good.store(false, std::memory_order_relaxed);
    };
  };
  const int64_t blocks = m.d % (pool.threads * kLine) == 0 ? pool.threads : 1;
  if (blocks == 1) {
    run_layers(m, x, out, scratch, launch_on(pool));
    return good;
  }
  Layers<A> part = m;
  part.d = m.d / blocks;
  const Parallel alone;
  for_each_task(pool, blocks, [&](int64_t block) {
    const int64_t k = block * part.d;
    run_layers(part, x.columns_from(k), out.columns_from(k), scratch + block * part.scratch(),
               launch_on(alone));
  });
  return good;
}

}  // namespace cpu
}  // namespace mmssl
