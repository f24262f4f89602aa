// All hops of a LightGCN and their scaled sum, for both devices, from the products of spmm.h.
//
//   x_0 = x, x_l = M x_{l-1}, out = scale * (base + x_1 + ... + x_L)
//
// on pairs of tables: M (user, item) = (ui item, iu user). U users, I items, D features, L layers.
// The two products of a hop are one batch. A layer is stored in the type of the tables and dropped
// after the next hop; the sum is kept in the type of sums and rounded once.
#pragma once
#include <algorithm>
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
  // Numbers that the layers between the first and the last need: two of them at a time.
  int64_t scratch() const { return std::min<int64_t>(count - 1, 2) * size(); }
};

template <class T>
struct Sides {
  T* user;  // (U, D)
  T* item;  // (I, D)
};

// Runs the two products of a hop: y = M x. `launch` takes them as a span.
template <class T, class A, class Launch>
void hop(const Layers<A>& m, Sides<const T> x, Sides<T> y, const Epilogue<T, A>& user,
         const Epilogue<T, A>& item, const Launch& launch) {
  const SparseProduct<T, A> products[] = {{m.ui, x.item, y.user, m.d, user},
                                          {m.iu, x.user, y.item, m.d, item}};
  launch(std::span<const SparseProduct<T, A>>(products));
}

// The table pair of layer l, 0 < l < L, in the scratch memory.
template <class T, class A>
Sides<T> layer(const Layers<A>& m, T* scratch, int64_t l) {
  T* user = scratch + (l - 1) % 2 * m.size();
  return {user, user + m.ui.rows * m.d};
}

// layers: m.scratch() numbers; sums: m.size(). No table may overlap another; base may be x.
template <class T, class A, class Launch>
void run_layers(const Layers<A>& m, Sides<const T> base, Sides<const T> x, Sides<T> out, T* layers,
                A* sums, const Launch& launch) {
  A* item_sums = sums + m.ui.rows * m.d;
  for (int64_t l = 1; l <= m.count; ++l) {
    const bool first = l == 1, last = l == m.count;
    const Sides<T> y = last ? out : layer(m, layers, l);
    const Epilogue<T, A> user{first ? base.user : nullptr, sums, last ? out.user : nullptr,
                              m.scale};
    const Epilogue<T, A> item{first ? base.item : nullptr, item_sums, last ? out.item : nullptr,
                              m.scale};
    hop(m, x, y, user, item, launch);
    x = {y.user, y.item};
  }
}

// The gradients of base, which is g = scale * grad and which the caller has computed, and of x:
//
//   h_L = g, h_l = g + M h_{l+1}, grad_x = M h_1     with M the transposed matrices
template <class T, class A, class Launch>
void run_layers_backward(const Layers<A>& m, Sides<const T> g, Sides<T> grad_x, T* layers,
                         const Launch& launch) {
  Sides<const T> x = g;
  for (int64_t l = 1; l <= m.count; ++l) {
    const bool last = l == m.count;
    const Sides<T> y = last ? grad_x : layer(m, layers, l);
    Epilogue<T, A> user, item;
    if (!last) {
      user = {g.user, nullptr, y.user, A(1)};
      item = {g.item, nullptr, y.item, A(1)};
    }
    hop(m, x, y, user, item, launch);
    x = {y.user, y.item};
  }
}

namespace cpu {

// y = factor * x, n numbers.
template <class T, class A>
void scaled(const T* x, T* y, int64_t n, A factor, const Parallel& pool) {
  constexpr int64_t kTask = 1 << 15;
  for_each_task(pool, (n + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kTask);
    for (int64_t k = task * kTask; k < end; ++k) narrow(factor * widen(x[k]), y[k]);
  });
}

}  // namespace cpu
}  // namespace mmssl
