// propagate_layers on several threads at once; see tsan/race.cpp.
#include "ops/propagate_layers/layers.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto number) {
  using A = decltype(number);
  // The products and their epilogues are tested, so the two matrices need not hold the same edges.
  const int64_t users = 400, items = 300;
  const Matrix ui(users, items, 12, 9000), iu(items, users, 12, 9000);
  const auto args = [](const Matrix& m) {
    return SparseArgs<A>{int64_t(m.rowptr.size()) - 1, int64_t(m.col.size()), m.rowptr.data(),
                         m.col.data(),                 nullptr,               nullptr,
                         nullptr,                      nullptr,               m.columns};
  };
  Bytes all;
  for (int64_t d : {48, 192}) {  // shared rows, and columns of their own for up to four threads
    const Layers<A> m{args(ui), args(iu), d, 4, A(0.2)};
    const auto x = numbers<A>(m.size());
    std::vector<A> out(m.size()), scratch(m.scratch());
    const auto sides = [&](auto& t) { return Sides{t.data(), t.data() + users * d, d}; };
    const bool good = cpu::propagate_layers(m, sides(x), sides(out), scratch.data(), pool);
    const Bytes bytes = bytes_of(out, std::vector<char>{good});
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

const Register float32("propagate_layers float32", [](auto& pool) { return run(pool, float{}); });
const Register float64("propagate_layers float64", [](auto& pool) { return run(pool, double{}); });

}  // namespace
}  // namespace mmssl::race
