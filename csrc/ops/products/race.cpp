// tall_product, gram and transposed on several threads at once; see tsan/race.cpp.
#include <type_traits>

#include "ops/products/products.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto) {
  using T = decltype(storage);
  const int64_t n = 2100, p = 36, q = 50;
  const auto a = numbers<T>(n * p), b = numbers<T>(n * q, 2);
  std::vector<T> product(p * q), square(p * p), transposed(p * n);
  std::vector<double> gram(p * p);
  if constexpr (!std::is_same_v<T, bf16>) {
    cpu::tall_product(a.data(), p, b.data(), q, n, product.data(), pool);
    cpu::tall_product(a.data(), p, a.data(), p, n, square.data(), pool);
  }
  cpu::gram(a.data(), p, n, gram.data(), pool);
  cpu::transpose(a.data(), n, p, sizeof(T), transposed.data(), pool);
  return bytes_of(product, square, gram, transposed);
}

const bool registered =
    Register::for_each_dtype("products", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
