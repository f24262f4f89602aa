// Runs every CPU kernel under ThreadSanitizer: on 2 to 64 plain threads, and two calls at once. The
// kernels ask for threads through common/parallel.h, so neither torch nor OpenMP takes part, whose
// barriers the sanitizer does not know. Built and run by csrc/tsan.sh.
#include "tsan/race.h"

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "host/index.h"
#include "host/lists.h"

namespace mmssl::race {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

namespace {

Parallel pool_of(int threads) {
  Parallel pool;
  pool.threads = threads;
  pool.run = [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < count; ++i) others.emplace_back(body, i, i + 1, context);
    body(0, 1, context);
    for (auto& thread : others) thread.join();
  };
  return pool;
}

// Index building starts its own threads: one per core, with at least 2^18 edges each.
const Register host("host", [](const Parallel&) {
  const int64_t users = 3000, items = 2000, edges = (int64_t(1) << 19) + 11, k = 200;
  const auto user = ids(edges, users, 1), item = ids(edges, items, 2);
  const auto index = host::build_index(user.data(), item.data(), edges, users, items);
  std::vector<int32_t> lists(users * k);
  for (int64_t i = 0; i < users * k; ++i) {
    lists[i] = i / k % 5 == 0 ? -1 : int32_t((i / k * 7 + i % k) % items);
  }
  const int64_t nnz = index.col.size();
  const host::Csr csr{index.rowptr.data(), index.col.data(), users, items, nnz};
  const auto listed = host::index_of_lists(lists.data(), k, csr);
  return bytes_of(index.rowptr, index.col, index.colptr, index.row, index.perm, listed.rowptr,
                  listed.col, listed.colptr, listed.row);
});

int runs = 0;

void run(const Case& kernel) {
  const Bytes expected = kernel.run(Parallel{});
  for (const int threads : {2, 3, 8, 64}) {
    const Parallel pool = pool_of(threads);
    Bytes first, second;
    std::thread other([&] { second = kernel.run(pool); });  // two callers at once
    first = kernel.run(pool);
    other.join();
    runs += 2;
    if (first != expected || second != expected) {
      std::fprintf(stderr, "%s: the bits differ with %d threads\n", kernel.name.c_str(), threads);
      std::exit(1);
    }
  }
}

}  // namespace
}  // namespace mmssl::race

int main() {
  for (const auto& kernel : mmssl::race::cases()) mmssl::race::run(kernel);
  std::printf("no races in %d parallel runs of %d kernels on 2 to 64 threads\n", mmssl::race::runs,
              int(mmssl::race::cases().size()));
}
