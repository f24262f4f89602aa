// Cuts the problem into tiles, hands these to the threads, and finishes the rows.
#include <cmath>
#include <vector>

#include "common/exponent_range.h"
#include "common/row_norm.h"
#include "ops/info_nce/info_nce.h"

namespace mmssl::cpu {
namespace {

// Scores and gradients in A, from normalized copies of the rows.
template <class A>
class PlainEngine {
 public:
  explicit PlainEngine(const Layout& layout)
      : layout_(layout), functions_(tile_functions<A>()) {
    const int64_t lanes = functions_.lanes;
    ld_ = (layout.d + lanes - 1) / lanes * lanes;
  }

  void place(Arena& arena, bool gradients) {
    for (int s = 0; s < kSets; ++s) {
      const int64_t rows = layout_.all_rows(s);
      rows_[s] = arena.take<A>(rows * ld_);
      panels_[s] = arena.take<A>(rows * layout_.d);
      if (gradients) grads_[s] = arena.take<A>(rows * ld_);
    }
  }

  // Fills the operands of one chunk from its `rows` rows x (rows, d), and their norms.
  void pack(int set, int64_t first_row, const A* x, int64_t rows, double* norm) {
    const int64_t d = layout_.d, chunk = layout_.chunk;
    A* z = rows_[set] + first_row * ld_;
    functions_.normalize(x, rows, d, ld_, z, norm);
    std::fill(z + rows * ld_, z + chunk * ld_, A(0));
    functions_.make_panels(z, chunk, d, ld_, panels_[set] + first_row * d);
    if (A* g = grads_[set]) std::fill_n(g + first_row * ld_, chunk * ld_, A(0));
  }
  void pack(int set, int64_t first_row, const bf16* x, int64_t rows, double* norm) {
    Buffer<A> wide(rows * layout_.d);
    std::transform(x, x + rows * layout_.d, wide.get(), [](bf16 v) { return to_float(v); });
    pack(set, first_row, wide.get(), rows, norm);
  }

  void max(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    functions_.max(with_operands(t, p, p_row, q, q_row));
  }
  void sum(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    functions_.sum[t.p_shift != nullptr][t.q_sum != nullptr](
        with_operands(t, p, p_row, q, q_row));
  }
  void grad(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    t.p_grad = grads_[p] + p_row * ld_;
    t.q_grad = t.same_rows ? nullptr : grads_[q] + q_row * ld_;
    functions_.grad[t.p_shift != nullptr][t.q_weight != nullptr](
        with_operands(t, p, p_row, q, q_row));
  }

  // A row (d) of the normalized set or of its gradient. Other engines form it in the scratch passed
  // last.
  const A* normalized(int set, int64_t row, A*) const { return rows_[set] + row * ld_; }
  A* gradient(int set, int64_t row, A*) const { return grads_[set] + row * ld_; }

 private:
  const Tile<A>& with_operands(Tile<A>& t, int p, int64_t p_row, int q, int64_t q_row) const {
    t.d = layout_.d;
    t.ld = ld_;
    t.p = rows_[p] + p_row * ld_;
    t.q = rows_[q] + q_row * ld_;
    t.q_t = panels_[q] + q_row * layout_.d;
    return t;
  }

  Layout layout_;
  const TileFunctions<A>& functions_;
  int64_t ld_;
  A *rows_[kSets] = {}, *panels_[kSets] = {}, *grads_[kSets] = {};
};

template <class T, class A, class Engine>
class Problem {
 public:
  Problem(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
          bool gradients, const Parallel& pool)
      : a_(a),
        pool_(pool),
        range_(a.temperature),
        layout_(a, negatives != nullptr),
        engine_(layout_),
        input_{anchor, positive, negatives} {
    place(gradients);
    arena_.allocate();
    place(gradients);
    for_each_chunk(pool_, sets_, [&](int set, int64_t copy, int64_t chunk, int64_t) {
      const int64_t row = sets_[set].first_row(copy, chunk), rows = sets_[set].rows_in(chunk);
      const T* x = input_[set] + (copy * sets_[set].rows + chunk * layout_.chunk) * a_.d;
      engine_.pack(set, row, x, rows, norm_[set] + row);
    });
    std::fill_n(target_, layout_.all_rows(kAnchors), int64_t(-1));
    for (int64_t row = 0; row < a.pairs * a.n; ++row) {
      const int64_t pair = row / a.n, i = row % a.n, to = a.target == nullptr ? i : a.target[row];
      target_[padded_row(row)] = to < 0 ? -1 : sets_[kPositives].first_row(pair, 0) + to;
    }
  }

  void forward(A* loss, double* saved) {
    const int directions = a_.directions();
    const int64_t padded = layout_.all_rows(kAnchors);
    std::vector<double> sums(directions * padded), positive(padded);
    if (!a_.in_batch) score_positives(positive.data());
    Buffer<A> maxima;
    if (!range_.fixed) {
      maxima = Buffer<A>(directions * padded);
      for (int64_t at = 0; at < directions * padded; ++at) {
        maxima.get()[at] = A(sums_positive(at % padded) ? range_.scale * positive[at % padded]
                                                        : -HUGE_VAL);
      }
      run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
        t.p_max = maxima.get() + task.phase.p * padded + p_row;
        if (counts_columns(task)) t.q_max = maxima.get() + task.phase.q * padded + q_row;
        engine_.max(t, task.phase.p, p_row, task.phase.q, q_row);
      });
    }
    run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
      const int64_t p = task.phase.p * padded + p_row, q = task.phase.q * padded + q_row;
      const bool columns = counts_columns(task) || t.same_rows;
      t.p_sum = sums.data() + p;
      if (columns) t.q_sum = sums.data() + q;
      if (!range_.fixed) {
        t.p_shift = maxima.get() + p;
        if (columns) t.q_shift = maxima.get() + q;
      }
      if (has_targets(t, task, p_row, q_row)) t.positive = positive.data() + p_row;
      engine_.sum(t, task.phase.p, p_row, task.phase.q, q_row);
    });
    const int64_t count = a_.pairs * a_.n;
    for_each_number(count, [&](int64_t row) {
      const int64_t i = padded_row(row);
      const double s = positive[i];
      saved[directions * count + row] = s;
      double total = 0;
      for (int direction = 0; direction < directions; ++direction) {
        const int64_t at = direction * padded + i;
        const double shift = range_.fixed ? range_.shift : -double(maxima.get()[at]);
        const double own = sums_positive(i) ? std::exp2(range_.scale * s + shift) : 0;
        const double lse = std::log(sums[at] + own) - kLn2 * shift;
        saved[direction * count + row] = lse;
        const double log_ratio = s / a_.temperature - lse;
        total -= a_.eps > 0 ? std::log(std::exp(log_ratio) + a_.eps) : log_ratio;
      }
      loss[row] = A(total / directions);
    });
  }

  // The gradients of the three sets (null: not needed) and of the temperature.
  void backward(const double* saved, const A* grad, T* const (&out)[kSets], A* grad_temperature) {
    const int directions = a_.directions();
    const int64_t padded = layout_.all_rows(kAnchors), count = a_.pairs * a_.n;
    // Row weights w_i = -dL/d(log ratio), divided by the largest so that g_ij keeps its range
    // whatever the scale of the loss.
    Buffer<double> w(directions * count);
    double largest = 0;
    for (int64_t at = 0; at < directions * count; ++at) {
      const int64_t row = at % count;
      double factor = 1;
      if (a_.eps > 0) {
        const double p = std::exp(saved[directions * count + row] / a_.temperature - saved[at]);
        factor = p / (p + a_.eps);
      }
      w.get()[at] = grad[row] / directions * factor;
      largest = std::max(largest, std::abs(w.get()[at]));
    }
    if (!(largest > 0 && std::isfinite(largest))) largest = 1;
    std::vector<A> weight(directions * padded), shift(directions * padded), own(padded);
    for_each_number(count, [&](int64_t row) {
      const int64_t i = padded_row(row);
      const double s = saved[directions * count + row];
      for (int direction = 0; direction < directions; ++direction) {
        const int64_t at = direction * count + row, to = direction * padded + i;
        const double log2_sum = saved[at] * kLog2E, relative = w.get()[at] / largest;
        weight[to] = A(range_.fixed ? relative * std::exp2(-range_.shift - log2_sum)
                                          : relative);
        shift[to] = A(log2_sum);
        // p - 1 for the positive. Where a tile holds it, p is added there.
        own[i] += A(a_.in_batch ? -relative
                                      : relative * std::expm1(s / a_.temperature - saved[at]));
      }
    });
    run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
      const int64_t p = task.phase.p * padded + p_row, q = task.phase.q * padded + q_row;
      // Both triangles of a tile on the diagonal of a set are computed, so there, too, w_i + w_j.
      const bool columns = counts_columns(task) || t.same_rows;
      t.p_weight = weight.data() + p;
      if (columns) t.q_weight = weight.data() + q;
      if (!range_.fixed) {
        t.p_shift = shift.data() + p;
        if (columns) t.q_shift = shift.data() + q;
      }
      if (has_targets(t, task, p_row, q_row)) t.own = own.data() + p_row;
      engine_.grad(t, task.phase.p, p_row, task.phase.q, q_row);
    });
    const double sum = finish(largest / a_.temperature, own.data(), out);
    *grad_temperature = A(-0.5 / a_.temperature * sum);
  }

 private:
  void place(bool gradients) {
    for (int s = 0; s < kSets; ++s) {
      norm_[s] = arena_.template take<double>(layout_.all_rows(s));
    }
    target_ = arena_.template take<int64_t>(layout_.all_rows(kAnchors));
    engine_.place(arena_, gradients);
  }

  // Where anchor `row` of all is among the padded rows.
  int64_t padded_row(int64_t row) const {
    return sets_[kAnchors].first_row(row / a_.n, 0) + row % a_.n;
  }

  // Whether the positive of a (padded) anchor is a term of the sum that no tile adds.
  bool sums_positive(int64_t i) const { return !a_.in_batch && target_[i] >= 0; }

  // s12_iy of every anchor.
  void score_positives(double* score) const {
    for_each_chunk(pool_, sets_, [&](int set, int64_t copy, int64_t chunk, int64_t) {
      if (set != kAnchors) return;
      std::unique_ptr<A[]> scratch(new A[2 * a_.d]);
      const int64_t first = sets_[set].first_row(copy, chunk);
      for (int64_t i = first; i < first + sets_[set].rows_in(chunk); ++i) {
        if (target_[i] < 0) continue;
        const A* z = engine_.normalized(kAnchors, i, scratch.get());
        const A* positive = engine_.normalized(kPositives, target_[i], scratch.get() + a_.d);
        score[i] = dot_in_double(z, positive, a_.d);
      }
    });
  }

  // f(number) for every number below count, in parallel.
  template <class F>
  void for_each_number(int64_t count, const F& f) const {
    constexpr int64_t kBlock = 256;
    for_each_task(pool_, (count + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t end = std::min(count, (block + 1) * kBlock);
      for (int64_t number = block * kBlock; number < end; ++number) f(number);
    });
  }

  // f(tile, task, first padded row of P, of Q) for every tile.
  template <class F>
  void run(const F& f) const {
    std::vector<Phase> phases;
    if (a_.in_batch) phases.push_back({kAnchors, kPositives});
    if (a_.intra_view) phases.push_back({kAnchors, kAnchors});
    if (a_.intra_view && a_.symmetric) phases.push_back({kPositives, kPositives});
    if (sets_[kNegatives].rows > 0) phases.push_back({kAnchors, kNegatives});
    if (sets_[kNegatives].rows > 0 && a_.symmetric) phases.push_back({kPositives, kNegatives});
    PairSchedule(phases, sets_, a_.pairs).run(pool_, [&](const PairTask& task) {
      const RowSet &p = sets_[task.phase.p], &q = sets_[task.phase.q];
      Tile<A> t{};
      t.rows = p.rows_in(task.p_chunk);
      t.cols = q.rows_in(task.q_chunk);
      t.same_rows = task.phase.same() && task.p_chunk == task.q_chunk;
      t.scale = A(range_.scale);
      t.shift = A(range_.shift);
      f(t, task, p.first_row(task.problem, task.p_chunk),
        q.first_row(q.shared() ? 0 : task.problem, task.q_chunk));
    });
  }

  // Whether a tile is also one of the rows of Q: s_ij = s_ji within a set, s12 in both directions.
  bool counts_columns(const PairTask& task) const {
    if (task.phase.same()) return task.p_chunk != task.q_chunk;
    return a_.symmetric && task.phase.q == kPositives;
  }

  // Whether the columns of a tile hold positives of its rows; tells the tile which.
  bool has_targets(Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) const {
    if (task.phase.p != kAnchors || task.phase.q != kPositives) return false;
    if (a_.target == nullptr && task.p_chunk != task.q_chunk) return false;
    t.target = target_ + p_row;
    t.q_row = q_row;
    return true;
  }

  // Gradients of the inputs from those of the normalized rows; returns the sum of all <z, dz>.
  // own_i is the gradient of s12_iy, which the tiles leave out.
  double finish(double scale, const A* own, T* const (&out)[kSets]) {
    const int64_t anchors = layout_.all_rows(kAnchors), positives = layout_.all_rows(kPositives);
    // The anchors of positive j, in their order, are anchor_of[first[j]] ... anchor_of[first[j + 1]
    // - 1]. They are counted two places on, and filling moves each place to the next.
    std::vector<int64_t> first(positives + 2, 0), anchor_of(anchors);
    for (int64_t i = 0; i < anchors; ++i) {
      if (target_[i] >= 0) ++first[target_[i] + 2];
    }
    for (int64_t j = 1; j < positives + 2; ++j) first[j] += first[j - 1];
    for (int64_t i = 0; i < anchors; ++i) {
      if (target_[i] >= 0) anchor_of[first[target_[i] + 1]++] = i;
    }

    std::vector<double> partial(
        (anchors + positives + layout_.all_rows(kNegatives)) / layout_.chunk);
    const TileFunctions<A>& functions = tile_functions<A>();
    for_each_chunk(pool_, sets_, [&](int set, int64_t copy, int64_t chunk, int64_t number) {
      const int64_t row = sets_[set].first_row(copy, chunk);
      const int64_t start = copy * sets_[set].rows + chunk * layout_.chunk;
      std::unique_ptr<A[]> scratch(new A[4 * a_.d]);
      A *const mine = scratch.get(), *const wide = mine + 3 * a_.d;
      for (int64_t i = row; i < row + sets_[set].rows_in(chunk); ++i) {
        const A* z = engine_.normalized(set, i, mine);
        A* dz = engine_.gradient(set, i, mine + a_.d);
        const auto add = [&](int other_set, int64_t other, int64_t anchor) {
          functions.add_row(engine_.normalized(other_set, other, mine + 2 * a_.d), own[anchor],
                            a_.d, dz);
        };
        if (set == kAnchors && target_[i] >= 0) add(kPositives, target_[i], i);
        if (set == kPositives) {
          for (int64_t n = first[i]; n < first[i + 1]; ++n) {
            add(kAnchors, anchor_of[n], anchor_of[n]);
          }
        }
        partial[number] += functions.through_norm(z, dz, norm_[set][i], scale, a_.d,
                                                  out[set] == nullptr ? nullptr : wide);
        if (out[set] == nullptr) continue;
        T* const to = out[set] + (start + i - row) * a_.d;
        for (int64_t k = 0; k < a_.d; ++k) narrow(wide[k], to[k]);
      }
    });
    double sum = 0;
    for (const double part : partial) sum += part;
    return scale * sum;
  }

  InfoNceArgs a_;
  Parallel pool_;
  Range<A> range_;
  Layout layout_;
  const std::vector<RowSet>& sets_ = layout_.sets;
  Engine engine_;
  const T* input_[kSets];
  double* norm_[kSets];
  int64_t* target_;  // (padded anchors), the padded row of each one's positive, or -1
  Arena arena_;
};

// Calls f with the problem on the engine that suits the dtype and the processor.
template <class T, class A, class F>
void with_problem(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                  bool gradients, const Parallel& pool, const F& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (bf16_unit() != Bf16Unit::kNone && Range<A>(a.temperature).fixed) {
      Problem<T, A, Bf16Engine> problem(a, anchor, positive, negatives, gradients, pool);
      return f(problem);
    }
  }
  Problem<T, A, PlainEngine<A>> problem(a, anchor, positive, negatives, gradients, pool);
  f(problem);
}

}  // namespace

template <class T, class A>
void info_nce_forward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                      A* loss, double* saved, const Parallel& pool) {
  if (a.pairs == 0 || a.n == 0) return;
  with_problem<T, A>(a, anchor, positive, negatives, false, pool,
                     [&](auto& problem) { problem.forward(loss, saved); });
}

template <class T, class A>
void info_nce_backward(const InfoNceArgs& a, const T* anchor, const T* positive, const T* negatives,
                       const double* saved, const A* grad, T* grad_anchor, T* grad_positive,
                       T* grad_negatives, A* grad_temperature, const Parallel& pool) {
  if (a.pairs == 0 || a.n == 0) {
    std::fill_n(grad_positive, a.pairs * a.m * a.d, T{});
    std::fill_n(grad_negatives, negatives == nullptr || grad_negatives == nullptr ? 0 : a.k * a.d,
                T{});
    *grad_temperature = 0;
    return;
  }
  T* const out[kSets] = {grad_anchor, grad_positive, grad_negatives};
  with_problem<T, A>(a, anchor, positive, negatives, true, pool, [&](auto& problem) {
    problem.backward(saved, grad, out, grad_temperature);
  });
}

#define MMSSL_INSTANTIATE(T, A)                                                                 \
  template void info_nce_forward<T, A>(const InfoNceArgs&, const T*, const T*, const T*, A*,    \
                                       double*, const Parallel&);                               \
  template void info_nce_backward<T, A>(const InfoNceArgs&, const T*, const T*, const T*,       \
                                        const double*, const A*, T*, T*, T*, A*, const Parallel&);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cpu
