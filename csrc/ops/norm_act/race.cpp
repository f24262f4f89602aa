// norm_act on several threads at once; see tsan/race.cpp.
#include "ops/keep_mask/keep_mask.h"
#include "ops/norm_act/norm_act.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const int64_t n = 700, h = 96;
  const auto x = numbers<T>(n * h), grad = numbers<T>(n * h, 2), up = numbers<T>(n * h, 3);
  const auto weight = numbers<A>(h, 4), bias = numbers<A>(h, 5);
  std::vector<uint8_t> keep(n * h);
  cpu::keep_mask(42, 0, keep.data(), n * h, pool);
  const NormActArgs<A> a{n, h, weight.data(), keep.data(), A(2), A(0.2)};
  std::vector<T> y(n * h), gx(n * h), ogy(n * h), ox(n * h);
  std::vector<A> mean(h), rstd(h), gw(h), gb(h), ow(h);
  cpu::norm_act<T, A>(a, x.data(), bias.data(), A(1e-5), y.data(), mean.data(), rstd.data(),
                      pool);
  cpu::norm_act_backward<T, A>(a, grad.data(), x.data(), mean.data(), rstd.data(), gx.data(),
                               gw.data(), gb.data(), pool);
  cpu::norm_act_double_backward<T, A>(a, up.data(), weight.data(), bias.data(), grad.data(),
                                      x.data(), mean.data(), rstd.data(), ogy.data(),
                                      ox.data(), ow.data(), pool);
  return bytes_of(keep, y, mean, rstd, gx, gw, gb, ogy, ox, ow);
}

const bool registered =
    Register::for_each_dtype("norm_act", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
