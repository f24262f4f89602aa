// propagate_layers on several threads at once; see tsan/race.cpp.
#include "ops/propagate_layers/batch.h"
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
    std::vector<A> out(m.size()), scratch(m.one_table());
    const auto sides = [&](auto& t) { return Sides{t.data(), t.data() + users * d, d}; };
    const bool good = cpu::propagate_layers(m, sides(x), sides(out), scratch.data(), pool);
    const int64_t count = 700;
    const auto user = ids(count, users, 1), pos = ids(count, items, 2), neg = ids(count, items, 3);
    const Triples batch{user.data(), pos.data(), neg.data(), count};
    std::vector<A> rows(3 * count * d), losses(2), slope(count), grad(m.size());
    const Sides<A> found{rows.data(), rows.data() + count * d, d};
    const bool forward = cpu::propagated_bpr<A>(m, batch, sides(x), found, &losses[0], &losses[1],
                                                slope.data(), pool);
    const bool backward = cpu::propagated_bpr_backward<A>(
        m, batch, sides(x), {found.user, found.item, d}, slope.data(), A(0.7), A(0.1), sides(grad),
        pool);
    std::vector<A> trained = x, mean = out, square(m.size(), A(0.01)), terms(2);
    const Adam<A> rates{nullptr, nullptr, A(0.01), A(1), A(0.1), A(0.99), A(0.01), A(1e-8)};
    const Moments<A> moments{sides(mean), sides(square), rates};
    const bool step = cpu::propagated_bpr_step<A>(m, batch, sides(trained), moments, A(0.1),
                                                  &terms[0], &terms[1], pool);
    const Ids chosen{user.data(), count, pos.data(), count};
    std::vector<A> some(2 * count * d), spread(m.size());
    const Sides<A> parts{some.data(), some.data() + count * d, d};
    const bool found_rows = cpu::propagated_rows<A>(m, chosen, sides(x), parts, pool);
    const bool spread_back = cpu::propagated_rows_backward<A>(
        m, chosen, {parts.user, parts.item, d}, sides(spread), pool);
    const std::vector<char> all_good{good, forward, backward, step, found_rows, spread_back};
    const Bytes bytes = bytes_of(some, spread, out, rows, losses, slope, grad, trained, mean,
                                 square, terms, all_good);
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

const Register float32("propagate_layers float32", [](auto& pool) { return run(pool, float{}); });
const Register float64("propagate_layers float64", [](auto& pool) { return run(pool, double{}); });

}  // namespace
}  // namespace mmssl::race
