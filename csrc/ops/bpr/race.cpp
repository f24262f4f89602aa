// bpr_loss on several threads at once; see tsan/race.cpp.
#include "ops/bpr/bpr.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const int64_t users = 90, items = 70, batch = 3000, d = 20;
  const auto user_emb = numbers<T>(users * d), item_emb = numbers<T>(items * d, 2);
  const auto user = ids(batch, users, 3), pos = ids(batch, items, 4), neg = ids(batch, items, 5);
  const BprArgs<T> a{user_emb.data(), item_emb.data(), user.data(), pos.data(), neg.data(),
                     users,           items,           batch,       d};
  std::vector<A> loss(1), squares(1), slope(batch);
  std::vector<T> grad_user(users * d), grad_item(items * d);
  cpu::bpr_forward<T, A>(a, loss.data(), squares.data(), slope.data(), pool);
  cpu::bpr_backward<T, A>(a, A(1), A(0.1), slope.data(), grad_user.data(),
                          grad_item.data(), pool);
  return bytes_of(loss, squares, slope, grad_user, grad_item);
}

const bool registered =
    Register::for_each_dtype("bpr_loss", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
