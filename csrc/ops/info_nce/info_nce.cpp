// Cuts the problem into tiles, hands these to the threads, and finishes the rows.
#include "ops/info_nce/info_nce.h"

#include <cmath>
#include <vector>

#include "common/exponent_range.h"
#include "common/pair_schedule.h"

namespace mmssl::cpu {
namespace {

// Up to this many rows chunks are short, so that many threads find work in one round.
constexpr int64_t kFewRows = 1024;

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
      const int64_t rows = layout_.copies[s] * layout_.padded(s);
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
        layout_(make_layout(a, negatives != nullptr)),
        engine_(layout_),
        input_{anchor, positive, negatives} {
    place(gradients);
    arena_.allocate();
    place(gradients);
    for_each_chunk([&](int set, int64_t copy, int64_t chunk, int64_t row, int64_t rows) {
      const T* x = input(set, copy, chunk);
      engine_.pack(set, row, x, rows, norm_[set] + row);
    });
  }

  void forward(A* loss, double* saved) {
    const int directions = a_.directions();
    const int64_t padded = a_.pairs * layout_.padded(0);
    Buffer<double> sums(directions * padded), positive(padded);
    std::fill_n(sums.get(), directions * padded, 0.0);
    Buffer<A> maxima;
    if (!range_.fixed) {
      maxima = Buffer<A>(directions * padded);
      std::fill_n(maxima.get(), directions * padded, -HUGE_VAL);
      run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
        t.p_max = maxima.get() + task.phase.p * padded + p_row;
        if (counts_columns(task)) t.q_max = maxima.get() + task.phase.q * padded + q_row;
        engine_.max(t, task.phase.p, p_row, task.phase.q, q_row);
      });
    }
    run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
      const int64_t p = task.phase.p * padded + p_row, q = task.phase.q * padded + q_row;
      const bool columns = counts_columns(task) || t.same_rows;
      t.p_sum = sums.get() + p;
      if (columns) t.q_sum = sums.get() + q;
      if (!range_.fixed) {
        t.p_shift = maxima.get() + p;
        if (columns) t.q_shift = maxima.get() + q;
      }
      if (on_diagonal(task)) t.positive = positive.get() + p_row;
      engine_.sum(t, task.phase.p, p_row, task.phase.q, q_row);
    });
    const int64_t count = a_.pairs * a_.n;
    for_each_number(count, [&](int64_t row) {
      const int64_t i = row / a_.n * layout_.padded(0) + row % a_.n;
      const double s = positive.get()[i];
      saved[directions * count + row] = s;
      double total = 0;
      for (int direction = 0; direction < directions; ++direction) {
        const int64_t at = direction * padded + i;
        const double shift = range_.fixed ? range_.shift : -double(maxima.get()[at]);
        const double lse = std::log(sums.get()[at]) - kLn2 * shift;
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
    const int64_t padded = a_.pairs * layout_.padded(0), count = a_.pairs * a_.n;
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
    Buffer<A> weight(directions * padded), shift(directions * padded), diagonal(padded);
    std::fill_n(weight.get(), directions * padded, A(0));
    std::fill_n(shift.get(), directions * padded, A(0));
    std::fill_n(diagonal.get(), padded, A(0));
    for_each_number(count, [&](int64_t row) {
      const int64_t i = row / a_.n * layout_.padded(0) + row % a_.n;
      for (int direction = 0; direction < directions; ++direction) {
        const int64_t at = direction * count + row, to = direction * padded + i;
        const double log2_sum = saved[at] * kLog2E, relative = w.get()[at] / largest;
        weight.get()[to] = A(range_.fixed ? relative * std::exp2(-range_.shift - log2_sum)
                                          : relative);
        shift.get()[to] = A(log2_sum);
        diagonal.get()[i] -= A(relative);
      }
    });
    run([&](Tile<A>& t, const PairTask& task, int64_t p_row, int64_t q_row) {
      const int64_t p = task.phase.p * padded + p_row, q = task.phase.q * padded + q_row;
      // Both triangles of a tile on the diagonal of a set are computed, so there, too, w_i + w_j.
      const bool columns = counts_columns(task) || t.same_rows;
      t.p_weight = weight.get() + p;
      if (columns) t.q_weight = weight.get() + q;
      if (!range_.fixed) {
        t.p_shift = shift.get() + p;
        if (columns) t.q_shift = shift.get() + q;
      }
      if (on_diagonal(task)) t.diagonal = diagonal.get() + p_row;
      engine_.grad(t, task.phase.p, p_row, task.phase.q, q_row);
    });
    const double sum = finish(largest / a_.temperature, diagonal.get(), out);
    *grad_temperature = A(-0.5 / a_.temperature * sum);
  }

 private:
  static Layout make_layout(const InfoNceArgs& a, bool has_negatives) {
    Layout layout{};
    layout.d = a.d;
    layout.chunk = a.n <= kFewRows ? kMinChunk : kMaxChunk;
    for (int s = 0; s < kSets; ++s) {
      layout.rows[s] = s < 2 ? a.n : has_negatives ? a.k : 0;
      layout.copies[s] = s < 2 ? a.pairs : 1;
      layout.chunks[s] = (layout.rows[s] + layout.chunk - 1) / layout.chunk;
    }
    return layout;
  }

  void place(bool gradients) {
    for (int s = 0; s < kSets; ++s) {
      norm_[s] = arena_.template take<double>(layout_.copies[s] * layout_.padded(s));
    }
    engine_.place(arena_, gradients);
  }

  const T* input(int set, int64_t copy, int64_t chunk) const {
    return input_[set] + (copy * layout_.rows[set] + chunk * layout_.chunk) * a_.d;
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

  // f(set, copy, chunk, first padded row, rows) for every chunk, in parallel.
  template <class F>
  void for_each_chunk(const F& f) const {
    int64_t first[kSets + 1] = {};
    for (int s = 0; s < kSets; ++s) first[s + 1] = first[s] + layout_.copies[s] * layout_.chunks[s];
    const auto all = [&](int64_t) { return first[kSets]; };
    for_each_round(pool_, 1, all, [&](int64_t, int64_t task) {
      int set = 0;
      while (task >= first[set + 1]) ++set;
      const int64_t copy = (task - first[set]) / layout_.chunks[set];
      const int64_t chunk = (task - first[set]) % layout_.chunks[set];
      f(set, copy, chunk, layout_.first_row(set, copy, chunk), layout_.rows_in(set, chunk));
    });
  }

  // f(tile, task, first padded row of P, of Q) for every tile.
  template <class F>
  void run(const F& f) const {
    std::vector<Phase> phases = {{kAnchors, kPositives}};
    if (a_.intra_view) phases.push_back({kAnchors, kAnchors});
    if (a_.intra_view && a_.symmetric) phases.push_back({kPositives, kPositives});
    if (layout_.rows[kNegatives] > 0) phases.push_back({kAnchors, kNegatives});
    if (layout_.rows[kNegatives] > 0 && a_.symmetric) phases.push_back({kPositives, kNegatives});
    const int64_t(&chunks)[kSets] = layout_.chunks;
    PairSchedule schedule(phases, {{chunks[0], false}, {chunks[1], false}, {chunks[2], true}},
                          a_.pairs);
    schedule.run(pool_, [&](const PairTask& task) {
      Tile<A> t{};
      t.rows = layout_.rows_in(task.phase.p, task.p_chunk);
      t.cols = layout_.rows_in(task.phase.q, task.q_chunk);
      t.same_rows = task.phase.same() && task.p_chunk == task.q_chunk;
      t.scale = A(range_.scale);
      t.shift = A(range_.shift);
      const int64_t q_copy = task.phase.q == kNegatives ? 0 : task.problem;
      f(t, task, layout_.first_row(task.phase.p, task.problem, task.p_chunk),
        layout_.first_row(task.phase.q, q_copy, task.q_chunk));
    });
  }

  // Whether a tile is also one of the rows of Q: s_ij = s_ji within a set, s12 in both directions.
  bool counts_columns(const PairTask& task) const {
    if (task.phase.same()) return task.p_chunk != task.q_chunk;
    return a_.symmetric && task.phase.q == kPositives;
  }

  static bool on_diagonal(const PairTask& task) {
    return task.phase.p == kAnchors && task.phase.q == kPositives && task.p_chunk == task.q_chunk;
  }

  // Gradients of the inputs from those of the normalized rows; returns the sum of all <z, dz>.
  // diagonal_i is the gradient of s12_ii, which the tiles leave out.
  double finish(double scale, const A* diagonal, T* const (&out)[kSets]) {
    const int64_t all_chunks = layout_.copies[0] * (layout_.chunks[0] + layout_.chunks[1]) +
                               layout_.chunks[2];
    Buffer<double> partial(all_chunks);
    const TileFunctions<A>& functions = tile_functions<A>();
    for_each_chunk([&](int set, int64_t copy, int64_t chunk, int64_t row, int64_t rows) {
      const int64_t start = copy * layout_.rows[set] + chunk * layout_.chunk;
      std::unique_ptr<A[]> scratch(new A[4 * a_.d]);
      A* const mine = scratch.get();
      double total = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const A* z = engine_.normalized(set, row + i, mine);
        const A* other = set < 2 ? engine_.normalized(1 - set, row + i, mine + a_.d) : nullptr;
        T* const to = out[set] == nullptr ? nullptr : out[set] + (start + i) * a_.d;
        A* const wide = to == nullptr ? nullptr : in_place(to, mine + 3 * a_.d);
        total += functions.through_norm(z, other, set < 2 ? diagonal[row + i] : A(0),
                                        engine_.gradient(set, row + i, mine + 2 * a_.d),
                                        norm_[set][row + i], scale, a_.d, wide);
        if (to != nullptr) narrow(wide, to);
      }
      int64_t slot = chunk + copy * layout_.chunks[set];
      for (int s = 0; s < set; ++s) slot += layout_.copies[s] * layout_.chunks[s];
      partial.get()[slot] = total;
    });
    double sum = 0;
    for (int64_t slot = 0; slot < all_chunks; ++slot) sum += partial.get()[slot];
    return scale * sum;
  }

  // Where a row of T is formed in A, and how it is stored.
  static A* in_place(A* out, A*) { return out; }
  static A* in_place(bf16*, A* scratch) { return scratch; }
  void narrow(const A*, A*) const {}
  void narrow(const A* wide, bf16* out) const {
    std::transform(wide, wide + a_.d, out, [](float v) { return to_bf16(v); });
  }

  InfoNceArgs a_;
  Parallel pool_;
  Range<A> range_;
  Layout layout_;
  Engine engine_;
  const T* input_[kSets];
  double* norm_[kSets];
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
