// Schedules tasks on pairs of chunks of rows so that every chunk is updated in one fixed order,
// whatever the number of threads, without atomics on floats and without a buffer per thread.
//
// A phase pairs the chunks of one set of rows with those of another (or of the same). Its rounds
// touch every chunk at most once, so the tasks of a round are independent. A task waits until the
// tasks of earlier rounds on its two chunks are done. Tasks are numbered so that neighbors in one
// round and the next work on the same chunks: a thread that keeps its share keeps them in its
// cache.
#pragma once
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common/parallel.h"

namespace mmssl::cpu {

// A set of rows, cut into chunks. Every problem of a batch has a copy of its own, or all share one.
struct RowSet {
  int64_t chunks;
  bool shared;
};

struct Phase {
  int p, q;  // sets of the rows, which is not shared, and of the columns
  bool same() const { return p == q; }
};

struct PairTask {
  Phase phase;
  int64_t problem, p_chunk, q_chunk;
};

class PairSchedule {
 public:
  PairSchedule(std::vector<Phase> phases, std::vector<RowSet> sets, int64_t problems)
      : phases_(std::move(phases)), sets_(std::move(sets)), problems_(problems) {
    int64_t counters = 0;
    for (const RowSet& set : sets_) {
      first_counter_.push_back(counters);
      counters += set.chunks * (set.shared ? 1 : problems);
    }
    done_.reset(new std::atomic<int64_t>[counters]());
    std::vector<int64_t> turn(sets_.size(), 0);
    for (const Phase& phase : phases_) {
      const int64_t side = std::max(sets_[phase.p].chunks, sets_[phase.q].chunks);
      starts_.push_back({rounds_, side, turn[phase.p], turn[phase.q]});
      // A shared set takes one round per problem: in one round, tasks would share its chunks.
      const int64_t q_rounds = side * (sets_[phase.q].shared ? problems : 1);
      rounds_ += q_rounds;
      turn[phase.p] += side;
      if (!phase.same()) turn[phase.q] += q_rounds;
    }
  }

  // Runs f(PairTask) for all of them.
  template <class F>
  void run(const Parallel& pool, const F& f) {
    for_each_round(
        pool, rounds_,
        [&](int64_t round) {
          const size_t n = phase_of(round);
          round -= starts_[n].round;
          if (sets_[phases_[n].q].shared) return starts_[n].side;
          return problems_ * (phases_[n].same() ? chords(starts_[n].side, round) : starts_[n].side);
        },
        [&](int64_t round, int64_t task) {
          const size_t n = phase_of(round);
          run_task(phases_[n], starts_[n], round - starts_[n].round, task, f);
        });
  }

 private:
  struct Start {
    int64_t round, side, p_turn, q_turn;
  };

  size_t phase_of(int64_t round) const {
    size_t n = 0;
    while (n + 1 < starts_.size() && round >= starts_[n + 1].round) ++n;
    return n;
  }

  // Within a set, i and j meet in the round i + j (mod side): on a circle of chunks, these are the
  // ends of parallel chords, counted from one pole to the other. The poles move half a chunk per
  // round.
  static int64_t chords(int64_t side, int64_t round) {
    return round % 2 == 0 ? side / 2 + 1 : (side + 1) / 2;
  }

  template <class F>
  void run_task(Phase phase, const Start& start, int64_t round, int64_t task, const F& f) {
    const int64_t side = start.side;
    if (phase.same()) {
      const int64_t count = chords(side, round), problem = task / count, chord = task % count;
      const int64_t from = (round / 2 + side - chord) % side;
      const int64_t to = (round - from + side) % side, i = std::min(from, to), j = std::max(from, to);
      Turn turn(counter(phase.p, problem, i), start.p_turn + round);
      if (i == j) return f(PairTask{phase, problem, i, i});
      Turn other(counter(phase.p, problem, j), start.p_turn + round);
      f(PairTask{phase, problem, i, j});
    } else {
      const bool shared = sets_[phase.q].shared;
      const int64_t problem = shared ? round % problems_ : task / side, i = task % side;
      const int64_t p_round = shared ? round / problems_ : round, j = (i + p_round) % side;
      const bool has_p = i < sets_[phase.p].chunks, has_q = j < sets_[phase.q].chunks;
      Turn turn(has_p ? counter(phase.p, problem, i) : nullptr, start.p_turn + p_round);
      Turn other(has_q ? counter(phase.q, problem, j) : nullptr, start.q_turn + round);
      if (has_p && has_q) f(PairTask{phase, problem, i, j});
    }
  }

  std::atomic<int64_t>* counter(int set, int64_t problem, int64_t chunk) const {
    const int64_t copy = sets_[set].shared ? 0 : problem;
    return &done_[first_counter_[set] + copy * sets_[set].chunks + chunk];
  }

  // Waits for its turn on a chunk, and passes the chunk on when destroyed.
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
  std::vector<RowSet> sets_;
  std::vector<Start> starts_;
  std::vector<int64_t> first_counter_;
  std::unique_ptr<std::atomic<int64_t>[]> done_;
  int64_t problems_, rounds_ = 0;
};

}  // namespace mmssl::cpu
