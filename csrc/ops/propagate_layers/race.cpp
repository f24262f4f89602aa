// propagate_layers on several threads at once; see tsan/race.cpp.
#include <utility>

#include "ops/propagate_layers/layers.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  // The products and their epilogues are tested, so the two matrices need not hold the same edges.
  const int64_t users = 400, items = 300, d = 48;
  const Matrix ui(users, items, 12, 9000), iu(items, users, 12, 9000);
  const auto args = [](const Matrix& m) {
    return SparseArgs<A>{int64_t(m.rowptr.size()) - 1, int64_t(m.col.size()), m.rowptr.data(),
                         m.col.data(),                 nullptr,               nullptr,
                         nullptr,                      nullptr,               m.columns};
  };
  const Layers<A> m{args(ui), args(iu), d, 4, A(0.2)};
  const auto x = numbers<T>(m.size());
  std::vector<T> out(m.size()), g(m.size()), grad(m.size()), layers(m.scratch());
  std::vector<A> sums(m.size());
  bool good = true;
  const auto launch = [&](auto products) { good &= cpu::spmm(products, pool); };
  const auto sides = [&](auto& t) { return Sides{t.data(), t.data() + users * d}; };
  run_layers(m, sides(x), sides(x), sides(out), layers.data(), sums.data(), launch);
  cpu::scaled(x.data(), g.data(), m.size(), m.scale, pool);
  run_layers_backward(m, sides(std::as_const(g)), sides(grad), layers.data(), launch);
  return bytes_of(out, g, grad, std::vector<char>{good});
}

const bool registered =
    Register::for_each_dtype("propagate_layers", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
