#include "ops/norm_act/norm_act.h"

#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "ops/norm_act/column_passes.h"
#include "common/simd.h"

namespace mmssl::cpu {
namespace {

// keep_scale where the element is kept, 0 elsewhere.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> kept(const NormActArgs<A>& a, int64_t offset) {
  if (a.keep == nullptr) return Vec<A, kLanes>{} + A(1);
  if constexpr (kLanes == 1) {
    return a.keep[offset] * a.keep_scale;
  } else {
    Vec<uint8_t, kLanes> byte;
    __builtin_memcpy(&byte, a.keep + offset, sizeof(byte));
    using Wide = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
    const Vec<Wide, kLanes> wide = __builtin_convertvector(byte, Vec<Wide, kLanes>);
    return __builtin_convertvector(wide, Vec<A, kLanes>) * a.keep_scale;
  }
}

template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> leaky(Vec<A, kLanes> x, A slope) {
  return x > 0 ? x : slope * x;
}

// The derivative of leaky, times v. At 0 it is the slope, as in torch.
template <class A, int kLanes>
MMSSL_INLINE Vec<A, kLanes> through_leaky(Vec<A, kLanes> x, Vec<A, kLanes> v, A slope) {
  return x > 0 ? v : slope * v;
}

// kCount numbers for every column.
template <class A, int kCount>
struct PerColumn {
  explicit PerColumn(int64_t columns) : columns(columns), numbers(kCount * columns) {}
  template <int kLanes>
  MMSSL_INLINE Vec<A, kLanes> get(int which, int64_t column) const {
    return load<A, kLanes>(numbers.data() + which * columns + column);
  }
  void set(int which, int64_t column, double number) {
    numbers[which * columns + column] = A(number);
  }
  int64_t columns;
  std::vector<A> numbers;
};

// The statistics of L columns, from the forward.
template <class A, int L>
struct Statistics {
  MMSSL_INLINE Statistics(const A* mean, const A* rstd)
      : mean(load<A, L>(mean)), rstd(load<A, L>(rstd)) {}
  Vec<A, L> mean, rstd;
};

template <class T, class A>
struct Forward {
  using Sum = A;
  // Sums of the deviations from the chunk's first row, which cancel less than the elements
  // themselves.
  static constexpr int kSums = 2;
  NormActArgs<A> a;
  const T* x;
  const A* bias;
  A eps;
  T* y;
  A *mean, *rstd;
  PerColumn<A, 1> scale;

  int64_t rows() const { return a.rows; }
  int64_t columns() const { return a.columns; }

  template <int L>
  MMSSL_INLINE Vec<A, L> activation(int64_t row, int64_t column) const {
    return leaky<A, L>(load_as<A, T, L>(x + row * a.columns + column), a.slope);
  }
  template <int L>
  MMSSL_INLINE Vec<A, L> terms(int64_t first, int64_t column) const {
    return activation<L>(first, column);
  }
  template <int L>
  MMSSL_INLINE void add(Vec<A, L> origin, int64_t row, int64_t column, Vec<A, L> (&sum)[2]) const {
    const Vec<A, L> d = activation<L>(row, column) - origin;
    sum[0] += d;
    sum[1] += d * d;
  }

  void finish(int64_t column, const ChunkSums& sums) {
    const Moments m = moments(sums, a.rows, kChunkRows, [&](int64_t chunk) {
      return double(activation<1>(chunk * kChunkRows, column));
    });
    mean[column] = A(m.mean);
    rstd[column] = A(1 / std::sqrt(m.variance + double(eps)));
    scale.set(0, column, a.weight[column] * rstd[column]);
  }

  template <int L>
  struct Factors {
    Vec<A, L> mean, scale, shift;
  };
  template <int L>
  MMSSL_INLINE Factors<L> factors(int64_t column) const {
    return {load<A, L>(mean + column), scale.template get<L>(0, column),
            load<A, L>(bias + column)};
  }
  template <int L>
  MMSSL_INLINE void write(const Factors<L>& f, int64_t row, int64_t column) const {
    const int64_t at = row * a.columns + column;
    const Vec<A, L> out = (activation<L>(row, column) - f.mean) * f.scale + f.shift;
    store_as<A, T, L>(y + at, out * kept<A, L>(a, at));
  }
};

template <class T, class A>
struct Backward {
  using Sum = A;
  static constexpr int kSums = 2;
  NormActArgs<A> a;
  const T *grad_y, *x;
  const A *mean, *rstd;
  T* grad_x;
  A *grad_weight, *grad_bias;
  PerColumn<A, 3> own;  // weight rstd, and the means of g and g xhat

  int64_t rows() const { return a.rows; }
  int64_t columns() const { return a.columns; }

  template <int L>
  MMSSL_INLINE Statistics<A, L> terms(int64_t, int64_t column) const {
    return {mean + column, rstd + column};
  }
  template <int L>
  MMSSL_INLINE void add(const Statistics<A, L>& t, int64_t row, int64_t column,
                        Vec<A, L> (&sum)[2]) const {
    const int64_t at = row * a.columns + column;
    const Vec<A, L> g = load_as<A, T, L>(grad_y + at) * kept<A, L>(a, at);
    const Vec<A, L> z = leaky<A, L>(load_as<A, T, L>(x + at), a.slope);
    sum[0] += g;
    sum[1] += g * ((z - t.mean) * t.rstd);
  }

  void finish(int64_t column, const ChunkSums& sums) {
    const double g = sums.all(0), gx = sums.all(1);
    grad_bias[column] = A(g);
    grad_weight[column] = A(gx);
    own.set(0, column, a.weight[column] * rstd[column]);
    own.set(1, column, g / a.rows);
    own.set(2, column, gx / a.rows);
  }

  template <int L>
  struct Factors {
    Vec<A, L> mean, rstd, scale, c1, c2;
  };
  template <int L>
  MMSSL_INLINE Factors<L> factors(int64_t column) const {
    return {load<A, L>(mean + column), load<A, L>(rstd + column), own.template get<L>(0, column),
            own.template get<L>(1, column), own.template get<L>(2, column)};
  }
  // grad_x = leaky' * weight * rstd * (g - mean(g) - xhat * mean(g xhat))
  template <int L>
  MMSSL_INLINE void write(const Factors<L>& f, int64_t row, int64_t column) const {
    const int64_t at = row * a.columns + column;
    const Vec<A, L> in = load_as<A, T, L>(x + at);
    const Vec<A, L> g = load_as<A, T, L>(grad_y + at) * kept<A, L>(a, at);
    const Vec<A, L> xhat = (leaky<A, L>(in, a.slope) - f.mean) * f.rstd;
    const Vec<A, L> out = f.scale * (g - f.c1 - xhat * f.c2);
    store_as<A, T, L>(grad_x + at, through_leaky<A, L>(in, out, a.slope));
  }
};

template <class T, class A>
struct DoubleBackward {
  using Sum = A;
  static constexpr int kSums = 5;
  NormActArgs<A> a;
  const T* up_x;
  const A *up_weight, *up_bias;
  const T *grad_y, *x;
  const A *mean, *rstd;
  T *out_grad_y, *out_x;
  A* out_weight;
  PerColumn<A, 7> own;  // of SecondFactors

  int64_t rows() const { return a.rows; }
  int64_t columns() const { return a.columns; }

  template <int L>
  struct Element {
    Vec<A, L> in, keep, g, xhat, l;
  };
  template <int L>
  MMSSL_INLINE Element<L> element(const Statistics<A, L>& t, int64_t at) const {
    Element<L> e;
    e.in = load_as<A, T, L>(x + at);
    e.keep = kept<A, L>(a, at);
    e.g = load_as<A, T, L>(grad_y + at) * e.keep;
    e.xhat = (leaky<A, L>(e.in, a.slope) - t.mean) * t.rstd;
    e.l = through_leaky<A, L>(e.in, load_as<A, T, L>(up_x + at), a.slope);
    return e;
  }
  template <int L>
  MMSSL_INLINE Statistics<A, L> terms(int64_t, int64_t column) const {
    return {mean + column, rstd + column};
  }
  template <int L>
  MMSSL_INLINE void add(const Statistics<A, L>& t, int64_t row, int64_t column,
                        Vec<A, L> (&sum)[5]) const {
    const Element<L> e = element<L>(t, row * a.columns + column);
    sum[0] += e.g;
    sum[1] += e.g * e.xhat;
    sum[2] += e.l;
    sum[3] += e.l * e.xhat;
    sum[4] += e.l * e.g;
  }

  void finish(int64_t column, const ChunkSums& sums) {
    const SecondFactors f = second_factors(sums, double(a.rows), a.weight[column], rstd[column],
                                           up_weight == nullptr ? 0 : up_weight[column],
                                           up_bias == nullptr ? 0 : up_bias[column]);
    out_weight[column] = A(f.weight);
    for (int k = 0; k < 7; ++k) own.set(k, column, f.own[k]);
  }

  template <int L>
  struct Factors {
    Statistics<A, L> terms;
    Vec<A, L> own[7];
  };
  template <int L>
  MMSSL_INLINE Factors<L> factors(int64_t column) const {
    Factors<L> f{terms<L>(0, column), {}};
    for (int k = 0; k < 7; ++k) f.own[k] = own.template get<L>(k, column);
    return f;
  }
  template <int L>
  MMSSL_INLINE void write(const Factors<L>& f, int64_t row, int64_t column) const {
    const int64_t at = row * a.columns + column;
    const Element<L> e = element<L>(f.terms, at);
    const Vec<A, L> to_g = f.own[0] * e.l + f.own[1] + f.own[2] * e.xhat;
    store_as<A, T, L>(out_grad_y + at, e.keep * to_g);
    const Vec<A, L> to_a = f.own[3] * e.l + f.own[4] * e.g + f.own[5] + f.own[6] * e.xhat;
    store_as<A, T, L>(out_x + at, through_leaky<A, L>(e.in, to_a, a.slope));
  }
};

// The arguments of one group; its rows begin at first().
template <class A>
struct Group : NormActArgs<A> {
  Group(const NormActArgs<A>& all, int64_t group) : NormActArgs<A>(all), group(group) {
    this->groups = 1;
    if (this->keep != nullptr) this->keep += first();
  }
  int64_t first() const { return group * this->rows * this->columns; }
  int64_t column() const { return group * this->columns; }  // of its statistics
  int64_t group;
};

// Calls run(group, to) for each group, which writes sums to `to`, kCount of them for every column, and
// adds these up over the groups.
template <int kCount, class A, class Run>
void for_groups(const NormActArgs<A>& a, const std::array<A*, kCount>& totals, const Run& run) {
  run(Group<A>(a, 0), totals);
  if (a.groups == 1) return;
  std::vector<A> own(kCount * a.columns);
  std::array<A*, kCount> to;
  for (int k = 0; k < kCount; ++k) to[k] = own.data() + k * a.columns;
  for (int64_t group = 1; group < a.groups; ++group) {
    run(Group<A>(a, group), to);
    for (int k = 0; k < kCount; ++k) {
      for (int64_t c = 0; c < a.columns; ++c) totals[k][c] += to[k][c];
    }
  }
}

}  // namespace

template <class T, class A>
void norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean, A* rstd,
              const Parallel& pool) {
  using Numbers = PerColumn<A, 1>;
  for_groups<0>(a, {}, [&](const Group<A>& g, const auto&) {
    Forward<T, A> job{g,
                      x + g.first(),
                      bias,
                      eps,
                      y + g.first(),
                      mean + g.column(),
                      rstd + g.column(),
                      Numbers(a.columns)};
    column_passes(job, pool);
  });
}

template <class T, class A>
void norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean,
                       const A* rstd, T* grad_x, A* grad_weight, A* grad_bias,
                       const Parallel& pool) {
  using Numbers = PerColumn<A, 3>;
  for_groups<2, A>(a, {grad_weight, grad_bias}, [&](const Group<A>& g, const auto& to) {
    Backward<T, A> job{g,
                       grad_y + g.first(),
                       x + g.first(),
                       mean + g.column(),
                       rstd + g.column(),
                       grad_x + g.first(),
                       to[0],
                       to[1],
                       Numbers(a.columns)};
    column_passes(job, pool);
  });
}

template <class T, class A>
void norm_act_double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                              const A* up_bias, const T* grad_y, const T* x, const A* mean,
                              const A* rstd, T* out_grad_y, T* out_x, A* out_weight,
                              const Parallel& pool) {
  using Numbers = PerColumn<A, 7>;
  for_groups<1, A>(a, {out_weight}, [&](const Group<A>& g, const auto& to) {
    DoubleBackward<T, A> job{g,
                             up_x + g.first(),
                             up_weight,
                             up_bias,
                             grad_y + g.first(),
                             x + g.first(),
                             mean + g.column(),
                             rstd + g.column(),
                             out_grad_y + g.first(),
                             out_x + g.first(),
                             to[0],
                             Numbers(a.columns)};
    column_passes(job, pool);
  });
}

#define MMSSL_INSTANTIATE(T, A)                                                                 \
  template void norm_act<T, A>(const NormActArgs<A>&, const T*, const A*, A, T*, A*, A*,        \
                               const Parallel&);                                                \
  template void norm_act_backward<T, A>(const NormActArgs<A>&, const T*, const T*, const A*,    \
                                        const A*, T*, A*, A*, const Parallel&);                 \
  template void norm_act_double_backward<T, A>(const NormActArgs<A>&, const T*, const A*,       \
                                               const A*, const T*, const T*, const A*, const A*, \
                                               T*, T*, A*, const Parallel&);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(double, double)
MMSSL_INSTANTIATE(bf16, float)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cpu
