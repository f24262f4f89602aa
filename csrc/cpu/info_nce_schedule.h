// The order of the tile tasks of InfoNCE: every chunk of rows is updated in one fixed order,
// whatever the number of threads, without atomics on floats and without a buffer per thread.
//
// A phase pairs the chunks of a row set with those of a column set (or of the same one). Its rounds
// touch every chunk once, so the tasks of a round are independent. A task waits until the earlier
// tasks of its two chunks are done; tasks are handed out in order, so the one that is waited for is
// always being run, and with fewer threads than chunks there is nearly never a wait.
#pragma once
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace mmssl::cpu {

// Sets of rows: 0 the anchors, 1 the positives, 2 the negatives.
constexpr int kSets = 3;

struct Phase {
  int p, q;  // sets of the rows and of the columns
  bool same() const { return p == q; }
};

struct TileTask {
  Phase phase;
  int64_t pair, p_chunk, q_chunk;
};

class Schedule {
 public:
  // chunks[s]: chunks of one copy of set s. Sets 0 and 1 have a copy per pair, set 2 one in all.
  Schedule(std::vector<Phase> phases, const int64_t (&chunks)[kSets], int64_t pairs)
      : phases_(std::move(phases)), pairs_(pairs) {
    int64_t counters = 0;
    for (int s = 0; s < kSets; ++s) {
      chunks_[s] = chunks[s];
      first_counter_[s] = counters;
      counters += chunks[s] * (s == 2 ? 1 : pairs);
    }
    done_.reset(new std::atomic<int64_t>[counters]());
    int64_t turn[kSets] = {};
    for (const Phase& phase : phases_) {
      const int64_t rounds = std::max(chunks_[phase.p], chunks_[phase.q]);
      starts_.push_back({tasks_, rounds, turn[phase.p], turn[phase.q]});
      tasks_ += rounds * rounds * pairs;
      turn[phase.p] += rounds;
      if (!phase.same()) turn[phase.q] += rounds * (phase.q == 2 ? pairs : 1);
    }
  }

  // Runs f(TileTask) for all of them.
  template <class F>
  void run(const Parallel& pool, const F& f) {
    for_each_task(pool, tasks_, [&](int64_t task) { run_task(task, f); });
  }

 private:
  struct Start {
    int64_t task, rounds, p_turn, q_turn;
  };

  template <class F>
  void run_task(int64_t task, const F& f) {
    size_t n = 0;
    while (n + 1 < starts_.size() && task >= starts_[n + 1].task) ++n;
    const Phase phase = phases_[n];
    const Start& start = starts_[n];
    task -= start.task;
    const int64_t round = task / (start.rounds * pairs_);
    const int64_t pair = task / start.rounds % pairs_, i = task % start.rounds;
    if (phase.same()) {  // i and j meet in round i + j, each pair once
      const int64_t j = (round + start.rounds - i) % start.rounds;
      if (j < i) return;
      Turn turn(counter(phase.p, pair, i), start.p_turn + round);
      if (i == j) return f(TileTask{phase, pair, i, i});
      Turn other(counter(phase.p, pair, j), start.p_turn + round);
      f(TileTask{phase, pair, i, j});
    } else {
      const int64_t j = (i + round) % start.rounds;
      const bool has_p = i < chunks_[phase.p], has_q = j < chunks_[phase.q];
      const int64_t q_turn = phase.q == 2 ? round * pairs_ + pair : round;
      Turn turn(has_p ? counter(phase.p, pair, i) : nullptr, start.p_turn + round);
      Turn other(has_q ? counter(phase.q, pair, j) : nullptr, start.q_turn + q_turn);
      if (has_p && has_q) f(TileTask{phase, pair, i, j});
    }
  }

  std::atomic<int64_t>* counter(int set, int64_t pair, int64_t chunk) const {
    return &done_[first_counter_[set] + (set == 2 ? 0 : pair * chunks_[set]) + chunk];
  }

  // Holds a chunk from its given turn on, and passes it to the next.
  class Turn {
   public:
    Turn(std::atomic<int64_t>* counter, int64_t turn) : counter_(counter), turn_(turn) {
      if (counter == nullptr) return;
      while (counter->load(std::memory_order_acquire) != turn) std::this_thread::yield();
    }
    ~Turn() {
      if (counter_ != nullptr) counter_->store(turn_ + 1, std::memory_order_release);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    std::atomic<int64_t>* counter_;
    int64_t turn_;
  };

  std::vector<Phase> phases_;
  std::vector<Start> starts_;
  std::unique_ptr<std::atomic<int64_t>[]> done_;
  int64_t chunks_[kSets] = {}, first_counter_[kSets] = {};
  int64_t pairs_, tasks_ = 0;
};

}  // namespace mmssl::cpu
