// view_attention on several threads at once; see tsan/race.cpp.
#include "ops/view_attention/view_attention.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const ViewAttentionSize size{3, 900, 32, 4};
  const int64_t count = size.views * size.nodes * size.dim;
  const auto query = numbers<T>(count), key = numbers<T>(count, 2), view = numbers<T>(count, 3);
  const auto grad = numbers<T>(size.nodes * size.heads * size.dim, 4);
  std::vector<T> out(grad.size()), gq(count), gk(count), gv(count);
  cpu::view_attention<T, A>(size, query.data(), key.data(), view.data(), out.data(), pool);
  cpu::view_attention_backward<T, A>(size, grad.data(), query.data(), key.data(),
                                     view.data(), gq.data(), gk.data(), gv.data(), pool);
  return bytes_of(out, gq, gk, gv);
}

const bool registered =
    Register::for_each_dtype("view_attention", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
