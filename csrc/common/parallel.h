// How a kernel asks for threads without knowing who owns them: torch's pool, or plain threads in a
// test.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace mmssl {

struct Parallel {
  int threads = 1;
  // Calls body(i, i + n, context) for ranges that cover [0, count) exactly once.
  void (*run)(int64_t count, void (*body)(int64_t begin, int64_t end, void* context),
              void* context) = nullptr;
};

// Runs f(task) for every task in [0, tasks). A thread takes the next free task, so that one that is
// delayed does not delay the rest; results must not depend on which thread ran a task.
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

// Runs f(round, task) for every task in [0, size(round)) of every round in [0, rounds). Each thread
// takes its own share of a round first and then what others have left of it, so that the same
// thread works on the same part of every round and a delayed thread does not delay the rest. A
// round begins when every task of the earlier ones has been taken, so its tasks may wait for those.
template <class Size, class F>
void for_each_round(const Parallel& pool, int64_t rounds, const Size& size, const F& f) {
  const int64_t workers = pool.run == nullptr ? 1 : pool.threads;
  if (workers <= 1) {
    for (int64_t round = 0; round < rounds; ++round) {
      for (int64_t task = 0; task < size(round); ++task) f(round, task);
    }
    return;
  }
  struct Shared {
    const Size& size;
    const F& f;
    std::unique_ptr<std::atomic<int64_t>[]> taken;  // (rounds, workers)
    int64_t rounds, workers;
  } shared{size, f, nullptr, rounds, workers};
  shared.taken.reset(new std::atomic<int64_t>[rounds * workers]());
  pool.run(
      workers,
      [](int64_t self, int64_t, void* context) {
        auto& s = *static_cast<Shared*>(context);
        for (int64_t round = 0; round < s.rounds; ++round) {
          const int64_t tasks = s.size(round);
          for (int64_t n = 0; n < s.workers; ++n) {
            const int64_t share = (self + n) % s.workers;
            const int64_t first = tasks * share / s.workers, last = tasks * (share + 1) / s.workers;
            auto& taken = s.taken[round * s.workers + share];
            while (taken.load(std::memory_order_relaxed) < last - first) {
              const int64_t task = first + taken.fetch_add(1, std::memory_order_relaxed);
              if (task < last) s.f(round, task);
            }
          }
        }
      },
      &shared);
}

}  // namespace mmssl
