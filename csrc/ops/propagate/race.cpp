// spmm on several threads at once; see tsan/race.cpp.
#include "common/check_index.h"
#include "ops/propagate/spmm.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

Bytes run(const Parallel& pool, auto storage, auto sum) {
  using T = decltype(storage);
  using A = decltype(sum);
  const Matrix m(400, 300, 12, 9000);
  const int64_t rows = 400, d = 48, nnz = m.col.size();
  const auto x = numbers<T>(m.columns * d), g = numbers<T>(rows * d, 2);
  const auto value = numbers<A>(nnz, 3);
  const SparseArgs<A> a{rows,    nnz,     m.rowptr.data(), m.col.data(),
                        nullptr, nullptr, value.data(),    nullptr,
                        m.columns};
  std::vector<T> y(rows * d), other(rows * d);
  std::vector<A> grad(nnz);
  const std::vector<SparseProduct<T, A>> products{{a, x.data(), y.data(), d},
                                                  {a, x.data(), other.data(), d}};
  bool good = cpu::spmm(std::span(products), pool);
  good &= cpu::spmm_value_grad(a, g.data(), x.data(), grad.data(), d, pool);
  good &= cpu::is_rowptr(m.rowptr.data(), rows, nnz, pool);
  good &= cpu::ids_in_range(m.col.data(), nnz, m.columns, pool);
  return bytes_of(y, other, grad, std::vector<char>{good});
}

const bool registered =
    Register::for_each_dtype("spmm", [](const auto&... args) { return run(args...); });

}  // namespace
}  // namespace mmssl::race
