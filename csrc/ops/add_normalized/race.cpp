// add_normalized on several threads at once; see tsan/race.cpp.
#include "ops/add_normalized/add_normalized.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const NormalizedSize size{3, 1500, 40, 1500 * 40, 40};
  const int64_t count = size.rows * size.dim;
  const auto base = numbers<T>(count), x = numbers<T>(size.views * count, 2);
  const auto grad = numbers<T>(count, 3);
  std::vector<T> out(count), grad_x(x.size());
  std::vector<A> inverse(size.views * size.rows);
  cpu::add_normalized<T, A>(size, base.data(), x.data(), A(0.3), out.data(), inverse.data(), pool);
  cpu::add_normalized_backward<T, A>(size, grad.data(), x.data(), inverse.data(), A(0.3),
                                     grad_x.data(), pool);
  return bytes_of(out, inverse, grad_x);
}

const bool registered =
    Register::for_each_dtype("add_normalized", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
