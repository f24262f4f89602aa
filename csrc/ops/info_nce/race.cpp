// info_nce on several threads at once; see tsan/race.cpp.
#include "ops/info_nce/info_nce.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

template <class T, class A>
Bytes run(const Parallel& pool, const cpu::InfoNceArgs& a) {
  const int64_t rows = a.pairs * a.n, size = rows * a.d, positives = a.pairs * a.m * a.d;
  const auto anchor = numbers<T>(size), positive = numbers<T>(positives, 2);
  const auto negatives = numbers<T>(a.k * a.d, 3);
  const auto grad = numbers<A>(rows, 4);
  std::vector<A> loss(rows), grad_temperature(1);
  std::vector<double> saved(3 * rows);
  std::vector<T> ga(size), gp(positives), gn(a.k * a.d);
  cpu::info_nce_forward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                              loss.data(), saved.data(), pool);
  cpu::info_nce_backward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                               saved.data(), grad.data(), ga.data(), gp.data(), gn.data(),
                               grad_temperature.data(), pool);
  return bytes_of(loss, saved, ga, gp, gn, grad_temperature);
}

// Every phase of a square problem; then few anchors with many rows that hold their positives.
const bool registered =
    Register::for_each_dtype("info_nce", [](const Parallel& pool, auto storage, auto sum) {
      using T = decltype(storage);
      using A = decltype(sum);
      const auto target = ids(2 * 150, 700, 5);
      return bytes_of(
          run<T, A>(pool, {2, 300, 300, 37, 24, nullptr, true, true, true, 0.2, 1e-8}),
          run<T, A>(pool, {2, 150, 700, 37, 24, target.data(), true, true, false, 0.2, 1e-8}));
    });

}  // namespace
}  // namespace mmssl::race
