// info_nce on several threads at once; see tsan/race.cpp.
#include "ops/info_nce/info_nce.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const cpu::InfoNceArgs a{2, 300, 37, 24, true, true, 0.2, 1e-8};
  const int64_t size = a.pairs * a.n * a.d;
  const auto anchor = numbers<T>(size), positive = numbers<T>(size, 2);
  const auto negatives = numbers<T>(a.k * a.d, 3);
  const auto grad = numbers<A>(a.pairs * a.n, 4);
  std::vector<A> loss(a.pairs * a.n), grad_temperature(1);
  std::vector<double> saved(3 * a.pairs * a.n);
  std::vector<T> ga(size), gp(size), gn(a.k * a.d);
  cpu::info_nce_forward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                              loss.data(), saved.data(), pool);
  cpu::info_nce_backward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                               saved.data(), grad.data(), ga.data(), gp.data(), gn.data(),
                               grad_temperature.data(), pool);
  return bytes_of(loss, saved, ga, gp, gn, grad_temperature);
}

const bool registered =
    Register::for_each_dtype("info_nce", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
