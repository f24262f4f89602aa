// masked_topk on several threads at once; see tsan/race.cpp.
#include "ops/topk/topk.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const Matrix m(300, 700, 9, 300);  // enough users to order the items by their norms
  const int64_t users = 300, d = 20, k = 15;
  const auto user = numbers<T>(users * d), item = numbers<T>(m.columns * d, 2);
  std::vector<A> scores(users * k);
  std::vector<int64_t> items(users * k);
  cpu::masked_topk<T, A>({users, m.columns, users, d, k, user.data(), item.data(), nullptr,
                          m.rowptr.data(), m.col.data(), scores.data(), items.data()},
                         pool);
  return bytes_of(scores, items);
}

const bool registered =
    Register::for_each_dtype("masked_topk", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
