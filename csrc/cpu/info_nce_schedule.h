// The order of the tile tasks of InfoNCE: every chunk of rows is updated in one fixed order,
// whatever the number of threads, without atomics on floats and without a buffer per thread.
//
// A phase pairs the chunks of a row set with those of a column set (or of the same one). Its rounds
// touch every chunk at most once, so the tasks of a round are independent. A task waits until the
// tasks of earlier rounds on its two chunks are done. Tasks are numbered so that neighbours in one
// round and the next work on the same chunks: a thread that keeps its share keeps them in its cache.
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
      const int64_t side = std::max(chunks_[phase.p], chunks_[phase.q]);
      starts_.push_back({rounds_, side, turn[phase.p], turn[phase.q]});
      // The negatives belong to all pairs: a round for each, or its tasks would share chunks.
      rounds_ += side * (phase.q == 2 ? pairs : 1);
      turn[phase.p] += side;
      if (!phase.same()) turn[phase.q] += side * (phase.q == 2 ? pairs : 1);
    }
  }

  // Runs f(TileTask) for all of them.
  template <class F>
  void run(const Parallel& pool, const F& f) {
    for_each_round(
        pool, rounds_,
        [&](int64_t round) {
          const size_t n = phase_of(round);
          round -= starts_[n].round;
          if (phases_[n].q == 2) return starts_[n].side;
          return pairs_ * (phases_[n].same() ? chords(starts_[n].side, round) : starts_[n].side);
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

  // Within a set, i and j meet in the round i + j (mod side): on a circle of chunks, at the ends of
  // parallel chords, here counted from one pole to the other. The poles wander half a chunk a round.
  static int64_t chords(int64_t side, int64_t round) {
    return round % 2 == 0 ? side / 2 + 1 : (side + 1) / 2;
  }

  template <class F>
  void run_task(Phase phase, const Start& start, int64_t round, int64_t task, const F& f) {
    const int64_t side = start.side;
    if (phase.same()) {
      const int64_t count = chords(side, round), pair = task / count, chord = task % count;
      const int64_t from = (round / 2 + side - chord) % side;
      const int64_t to = (round - from + side) % side, i = std::min(from, to), j = std::max(from, to);
      Turn turn(counter(phase.p, pair, i), start.p_turn + round);
      if (i == j) return f(TileTask{phase, pair, i, i});
      Turn other(counter(phase.p, pair, j), start.p_turn + round);
      f(TileTask{phase, pair, i, j});
    } else {
      const bool shared = phase.q == 2;
      const int64_t pair = shared ? round % pairs_ : task / side, i = task % side;
      const int64_t p_round = shared ? round / pairs_ : round, j = (i + p_round) % side;
      const bool has_p = i < chunks_[phase.p], has_q = j < chunks_[phase.q];
      Turn turn(has_p ? counter(phase.p, pair, i) : nullptr, start.p_turn + p_round);
      Turn other(has_q ? counter(phase.q, pair, j) : nullptr, start.q_turn + round);
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
  int64_t pairs_, rounds_ = 0;
};

}  // namespace mmssl::cpu
