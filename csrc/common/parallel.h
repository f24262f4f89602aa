// How a kernel asks for threads without knowing who owns them (torch's pool, or none in a test).
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

namespace mmssl {

struct Parallel {
  int threads = 1;
  // Calls body(i, i + n, context) for ranges that cover [0, count) exactly once.
  void (*run)(int64_t count, void (*body)(int64_t begin, int64_t end, void* context),
              void* context) = nullptr;
};

// Runs f(task) for every task in [0, tasks). Threads take the next free task, so one that is held
// up does not hold up the rest; results must not depend on who ran a task.
template <class F>
void for_each_task(const Parallel& pool, int64_t tasks, const F& f) {
  const int64_t workers = std::min<int64_t>(pool.threads, tasks);
  if (workers <= 1 || pool.run == nullptr) {
    for (int64_t task = 0; task < tasks; ++task) f(task);
    return;
  }
  struct Shared {
    const F& f;
    std::atomic<int64_t> next;
    int64_t tasks;
  } shared{f, {0}, tasks};
  pool.run(
      workers,
      [](int64_t, int64_t, void* context) {
        auto& s = *static_cast<Shared*>(context);
        for (int64_t t; (t = s.next.fetch_add(1, std::memory_order_relaxed)) < s.tasks;) s.f(t);
      },
      &shared);
}

}  // namespace mmssl
