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
  int64_t rows, chunk, copies;

  bool shared() const { return copies == 1; }
  int64_t chunks() const { return (rows + chunk - 1) / chunk; }
  int64_t padded() const { return chunks() * chunk; }  // rows of a copy, in whole chunks
  int64_t rows_in(int64_t c) const { return std::min(chunk, rows - c * chunk); }
  // First row of a chunk among the padded rows of all copies.
  int64_t first_row(int64_t copy, int64_t c) const { return copy * padded() + c * chunk; }
};

// Runs f(set, copy, chunk, number of the chunk among all) for every chunk of all sets, in parallel.
template <class F>
void for_each_chunk(const Parallel& pool, const std::vector<RowSet>& sets, const F& f) {
  int64_t all = 0;
  for (const RowSet& set : sets) all += set.copies * set.chunks();
  for_each_round(pool, 1, [&](int64_t) { return all; }, [&](int64_t, int64_t task) {
    int set = 0;
    int64_t chunk = task;
    for (; chunk >= sets[set].copies * sets[set].chunks(); ++set) {
      chunk -= sets[set].copies * sets[set].chunks();
    }
    f(set, chunk / sets[set].chunks(), chunk % sets[set].chunks(), task);
  });
}

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
      counters += set.chunks() * set.copies;
    }
    done_.reset(new std::atomic<int64_t>[counters]());
    std::vector<int64_t> turn(sets_.size(), 0);
    for (const Phase& phase : phases_) {
      const int64_t p_chunks = sets_[phase.p].chunks(), q_chunks = sets_[phase.q].chunks();
      const int64_t fewer = std::min(p_chunks, q_chunks), more = std::max(p_chunks, q_chunks);
      starts_.push_back({rounds_, fewer, more, turn[phase.p], turn[phase.q]});
      // A shared set takes one round per problem: in one round, tasks would share its chunks.
      const int64_t each = sets_[phase.q].shared() ? problems : 1;
      rounds_ += more * each;
      turn[phase.p] += q_chunks;
      if (!phase.same()) turn[phase.q] += p_chunks * each;
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
          if (phases_[n].same()) return problems_ * chords(starts_[n].more, round);
          return sets_[phases_[n].q].shared() ? starts_[n].fewer : problems_ * starts_[n].fewer;
        },
        [&](int64_t round, int64_t task) {
          const size_t n = phase_of(round);
          run_task(phases_[n], starts_[n], round - starts_[n].round, task, f);
        });
  }

 private:
  struct Start {
    int64_t round, fewer, more, p_turn, q_turn;  // the first round; chunks of the two sides
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

  // Of two sets, chunk n of the one with fewer chunks meets chunk n + round (mod more) of the other,
  // which so has a task in only `fewer` of the rounds. Returns in how many rounds before this one:
  // its partners were j, j - 1, ..., j - round + 1 (mod more).
  static int64_t tasks_before(int64_t round, int64_t j, int64_t fewer, int64_t more) {
    const int64_t last = j - round + 1;
    const int64_t from_j = std::min(j, fewer - 1) - std::max<int64_t>(last, 0) + 1;
    const int64_t wrapped = last < 0 ? fewer - (more + last) : 0;
    return std::max<int64_t>(from_j, 0) + std::max<int64_t>(wrapped, 0);
  }

  template <class F>
  void run_task(Phase phase, const Start& start, int64_t round, int64_t task, const F& f) {
    const int64_t fewer = start.fewer, more = start.more;
    if (phase.same()) {
      const int64_t count = chords(more, round), problem = task / count, chord = task % count;
      const int64_t from = (round / 2 + more - chord) % more;
      const int64_t to = (round - from + more) % more, i = std::min(from, to), j = std::max(from, to);
      Turn turn(counter(phase.p, problem, i), start.p_turn + round);
      if (i == j) return f(PairTask{phase, problem, i, i});
      Turn other(counter(phase.p, problem, j), start.p_turn + round);
      f(PairTask{phase, problem, i, j});
    } else {
      const bool shared = sets_[phase.q].shared(), p_has_fewer = sets_[phase.p].chunks() == fewer;
      const int64_t problem = shared ? round % problems_ : task / fewer, n = task % fewer;
      const int64_t step = shared ? round / problems_ : round, met = (n + step) % more;
      const int64_t before = tasks_before(step, met, fewer, more);
      const int64_t i = p_has_fewer ? n : met, j = p_has_fewer ? met : n;
      const int64_t p_tasks = p_has_fewer ? step : before, q_tasks = p_has_fewer ? before : step;
      Turn turn(counter(phase.p, problem, i), start.p_turn + p_tasks);
      Turn other(counter(phase.q, problem, j),
                 start.q_turn + (shared ? q_tasks * problems_ + problem : q_tasks));
      f(PairTask{phase, problem, i, j});
    }
  }

  std::atomic<int64_t>* counter(int set, int64_t problem, int64_t chunk) const {
    const int64_t copy = sets_[set].shared() ? 0 : problem;
    return &done_[first_counter_[set] + copy * sets_[set].chunks() + chunk];
  }

  // Waits for its turn on a chunk, and passes the chunk on when destroyed.
  class Turn {
   public:
    Turn(std::atomic<int64_t>* counter, int64_t turn) : counter_(counter), turn_(turn) {
      while (counter->load(std::memory_order_acquire) != turn) std::this_thread::yield();
    }
    ~Turn() { counter_->store(turn_ + 1, std::memory_order_release); }
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
