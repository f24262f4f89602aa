#include "cpu/norm_act.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/simd.h"

namespace mmssl::cpu {
namespace {

// Columns are taken in strips that stay in the second-level cache between the passes over them (64
// columns of 2,048 rows in float32: 512 KB), each by one task, so that every sum has one order.
constexpr int kStrip = 64;
// Sums of so many rows are formed in A and then added in double, as torch's are.
constexpr int64_t kBlockRows = 32;
constexpr int64_t kAheadRows = 8;
// Below this many elements per task a thread costs more than it saves.
constexpr int64_t kMinTaskElements = 1 << 14;

template <class A, class T, int kLanes>
MMSSL_INLINE Vec<A, kLanes> load_as(const T* p) {
  if constexpr (std::is_same_v<T, bf16>) {
    if constexpr (kLanes == 1) {
      return to_float(*p);
    } else {
      Vec<uint16_t, kLanes> half;
      __builtin_memcpy(&half, p, sizeof(half));
      const Vec<uint32_t, kLanes> word =
          __builtin_convertvector(half, Vec<uint32_t, kLanes>) << 16;
      Vec<A, kLanes> v;
      __builtin_memcpy(&v, &word, sizeof(v));
      return v;
    }
  } else {
    return load<A, kLanes>(p);
  }
}

template <class A, class T, int kLanes>
MMSSL_INLINE void store_as(T* p, Vec<A, kLanes> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    if constexpr (kLanes == 1) {
      *p = to_bf16(v);
    } else {
      const Vec<uint16_t, kLanes> half =
          __builtin_convertvector(round_to_bf16<kLanes>(v) >> 16, Vec<uint16_t, kLanes>);
      __builtin_memcpy(p, &half, sizeof(half));
    }
  } else {
    store<A, kLanes>(p, v);
  }
}

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

// Fetches a strip's part of a row that is kAheadRows away: rows lie on pages of their own, where the
// processor's own prefetching ends.
template <class T>
MMSSL_INLINE void fetch(const T* p, int64_t width) {
  const char* byte = reinterpret_cast<const char*>(p);
  for (int64_t k = 0; k < width * int64_t(sizeof(T)); k += 64) __builtin_prefetch(byte + k);
}

// kCount sums over all rows of kVecs * kLanes columns: f(row, vector, terms) adds its terms.
template <class A, int kLanes, int kVecs, int kCount, class G, class F>
MMSSL_INLINE void column_sums(int64_t rows, double (&total)[kCount][kVecs * kLanes],
                              const G& ahead, const F& f) {
  for (auto& sums : total) std::fill(std::begin(sums), std::end(sums), 0.0);
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    const int64_t last = std::min(rows, first + kBlockRows);
    for (int i = 0; i < kVecs; ++i) {
      Vec<A, kLanes> sum[kCount] = {};
      for (int64_t row = first; row < last; ++row) {
        if (i == 0 && row + kAheadRows < rows) ahead(row + kAheadRows);
        f(row, i, sum);
      }
      for (int c = 0; c < kCount; ++c) {
        A lane[kLanes];
        __builtin_memcpy(lane, &sum[c], sizeof(lane));
        for (int k = 0; k < kLanes; ++k) total[c][i * kLanes + k] += lane[k];
      }
    }
  }
}

// Per-column factors of a strip, as vectors.
template <class A, int kLanes, int kVecs>
struct Columns {
  Vec<A, kLanes> v[kVecs];
  template <class F>
  MMSSL_INLINE explicit Columns(const F& f) {
    A lane[kVecs * kLanes];
    for (int k = 0; k < kVecs * kLanes; ++k) lane[k] = A(f(k));
    __builtin_memcpy(v, lane, sizeof(v));
  }
};

template <class T, class A>
struct Forward {
  NormActArgs<A> a;
  const T* x;
  const A* bias;
  A eps;
  T* y;
  A *mean, *rstd;

  template <int kLanes, int kVecs>
  MMSSL_INLINE void strip(int64_t column) const {
    using V = Vec<A, kLanes>;
    const int64_t n = a.rows, h = a.columns;
    constexpr int kWidth = kVecs * kLanes;
    double sum[1][kWidth], square[1][kWidth];
    const auto activation = [&](int64_t row, int i) {
      return leaky<A, kLanes>(load_as<A, T, kLanes>(x + row * h + column + i * kLanes), a.slope);
    };
    column_sums<A, kLanes, kVecs, 1>(
        n, sum, [&](int64_t row) { fetch(x + row * h + column, kWidth); },
        [&](int64_t row, int i, V(&s)[1]) { s[0] += activation(row, i); });
    const Columns<A, kLanes, kVecs> mu([&](int k) { return sum[0][k] / n; });
    column_sums<A, kLanes, kVecs, 1>(n, square, [](int64_t) {}, [&](int64_t row, int i, V(&s)[1]) {
      const V d = activation(row, i) - mu.v[i];
      s[0] += d * d;
    });
    for (int k = 0; k < kWidth; ++k) {
      mean[column + k] = A(sum[0][k] / n);
      rstd[column + k] = A(1 / std::sqrt(square[0][k] / n + double(eps)));
    }
    const Columns<A, kLanes, kVecs> scale(
        [&](int k) { return a.weight[column + k] * rstd[column + k]; });
    const Columns<A, kLanes, kVecs> shift([&](int k) { return bias[column + k]; });
    for (int64_t row = 0; row < n; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = row * h + column + i * kLanes;
        const V out = (activation(row, i) - mu.v[i]) * scale.v[i] + shift.v[i];
        store_as<A, T, kLanes>(y + at, out * kept<A, kLanes>(a, at));
      }
    }
  }
};

template <class T, class A>
struct Backward {
  NormActArgs<A> a;
  const T *grad_y, *x;
  const A *mean, *rstd;
  T* grad_x;
  A *grad_weight, *grad_bias;

  template <int kLanes, int kVecs>
  MMSSL_INLINE void strip(int64_t column) const {
    using V = Vec<A, kLanes>;
    const int64_t n = a.rows, h = a.columns;
    const Columns<A, kLanes, kVecs> mu([&](int k) { return mean[column + k]; });
    const Columns<A, kLanes, kVecs> r([&](int k) { return rstd[column + k]; });
    double sum[2][kVecs * kLanes];
    const auto ahead = [&](int64_t row) {
      const int64_t at = row * h + column;
      fetch(x + at, kVecs * kLanes);
      fetch(grad_y + at, kVecs * kLanes);
      if (a.keep != nullptr) fetch(a.keep + at, kVecs * kLanes);
    };
    column_sums<A, kLanes, kVecs, 2>(n, sum, ahead, [&](int64_t row, int i, V(&s)[2]) {
      const int64_t at = row * h + column + i * kLanes;
      const V g = load_as<A, T, kLanes>(grad_y + at) * kept<A, kLanes>(a, at);
      const V z = leaky<A, kLanes>(load_as<A, T, kLanes>(x + at), a.slope);
      s[0] += g;
      s[1] += g * ((z - mu.v[i]) * r.v[i]);
    });
    for (int k = 0; k < kVecs * kLanes; ++k) {
      grad_bias[column + k] = A(sum[0][k]);
      grad_weight[column + k] = A(sum[1][k]);
    }
    // grad_x = leaky' * weight * rstd * (g - mean(g) - xhat * mean(g xhat))
    const Columns<A, kLanes, kVecs> scale(
        [&](int k) { return a.weight[column + k] * rstd[column + k]; });
    const Columns<A, kLanes, kVecs> c1([&](int k) { return sum[0][k] / n; });
    const Columns<A, kLanes, kVecs> c2([&](int k) { return sum[1][k] / n; });
    for (int64_t row = 0; row < n; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = row * h + column + i * kLanes;
        const V in = load_as<A, T, kLanes>(x + at);
        const V g = load_as<A, T, kLanes>(grad_y + at) * kept<A, kLanes>(a, at);
        const V xhat = (leaky<A, kLanes>(in, a.slope) - mu.v[i]) * r.v[i];
        const V out = scale.v[i] * (g - c1.v[i] - xhat * c2.v[i]);
        store_as<A, T, kLanes>(grad_x + at, through_leaky<A, kLanes>(in, out, a.slope));
      }
    }
  }
};

// With g = keep * keep_scale * grad_y, l = leaky'(x) * up_x, m() the mean over the rows, c1 = m(g),
// c2 = m(g xhat), w the weight and r = rstd, norm_act_backward is
//   grad_a = w r (g - c1 - xhat c2),  grad_weight = N c2,  grad_bias = N c1.
// Its gradient for g is the same projection of l. That for xhat is
//   e = -w r c2 l - q g,  q = w r m(l xhat) - up_weight,
// and xhat = (a - mean) r depends on a as in the forward, r alone as r' = -r^2 xhat / N.
template <class T, class A>
struct DoubleBackward {
  NormActArgs<A> a;
  const T* up_x;
  const A *up_weight, *up_bias;
  const T *grad_y, *x;
  const A *mean, *rstd;
  T *out_grad_y, *out_x;
  A* out_weight;

  template <int kLanes, int kVecs>
  MMSSL_INLINE void strip(int64_t column) const {
    using V = Vec<A, kLanes>;
    using C = Columns<A, kLanes, kVecs>;
    const int64_t n = a.rows, h = a.columns;
    constexpr int kWidth = kVecs * kLanes;
    const C mu([&](int k) { return mean[column + k]; });
    const C r([&](int k) { return rstd[column + k]; });
    const auto each = [&](int64_t at, int i, const auto& use) {
      const V in = load_as<A, T, kLanes>(x + at);
      const V keep = kept<A, kLanes>(a, at);
      const V g = load_as<A, T, kLanes>(grad_y + at) * keep;
      const V xhat = (leaky<A, kLanes>(in, a.slope) - mu.v[i]) * r.v[i];
      const V l = through_leaky<A, kLanes>(in, load_as<A, T, kLanes>(up_x + at), a.slope);
      use(in, keep, g, xhat, l);
    };
    double sum[5][kWidth];
    const auto ahead = [&](int64_t row) {
      const int64_t at = row * h + column;
      fetch(x + at, kWidth);
      fetch(grad_y + at, kWidth);
      fetch(up_x + at, kWidth);
      if (a.keep != nullptr) fetch(a.keep + at, kWidth);
    };
    column_sums<A, kLanes, kVecs, 5>(n, sum, ahead, [&](int64_t row, int i, V(&s)[5]) {
      each(row * h + column + i * kLanes, i, [&](V, V, V g, V xhat, V l) {
        s[0] += g;
        s[1] += g * xhat;
        s[2] += l;
        s[3] += l * xhat;
        s[4] += l * g;
      });
    });
    double g_l[kWidth], g_0[kWidth], g_x[kWidth];              // of g: g_l l + g_0 + g_x xhat
    double x_l[kWidth], x_g[kWidth], x_0[kWidth], x_x[kWidth];  // of a: the same with g
    for (int k = 0; k < kWidth; ++k) {
      const double w = a.weight[column + k], rs = rstd[column + k];
      const double c1 = sum[0][k] / n, c2 = sum[1][k] / n;
      const double l1 = sum[2][k] / n, l2 = sum[3][k] / n, lg = sum[4][k] / n;
      const double q = w * rs * l2 - up_weight[column + k];
      const double product = lg - c1 * l1 - c2 * l2;  // m(l grad_a) / (w r)
      out_weight[column + k] = A(n * rs * product);
      g_l[k] = w * rs;
      g_0[k] = up_bias[column + k] - w * rs * l1;
      g_x[k] = up_weight[column + k] - w * rs * l2;
      const double e1 = -w * rs * c2 * l1 - q * c1, e2 = -w * rs * c2 * l2 - q * c2;
      x_l[k] = -w * rs * rs * c2;
      x_g[k] = -rs * q;
      x_0[k] = -rs * e1;
      x_x[k] = -rs * (e2 + w * rs * product);
    }
    const C gl([&](int k) { return g_l[k]; }), g0([&](int k) { return g_0[k]; });
    const C gx([&](int k) { return g_x[k]; }), xl([&](int k) { return x_l[k]; });
    const C xg([&](int k) { return x_g[k]; }), x0([&](int k) { return x_0[k]; });
    const C xx([&](int k) { return x_x[k]; });
    for (int64_t row = 0; row < n; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = row * h + column + i * kLanes;
        each(at, i, [&](V in, V keep, V g, V xhat, V l) {
          const V to_g = gl.v[i] * l + g0.v[i] + gx.v[i] * xhat;
          store_as<A, T, kLanes>(out_grad_y + at, keep * to_g);
          const V to_a = xl.v[i] * l + xg.v[i] * g + x0.v[i] + xx.v[i] * xhat;
          store_as<A, T, kLanes>(out_x + at, through_leaky<A, kLanes>(in, to_a, a.slope));
        });
      }
    }
  }
};

// Columns [begin, end) in blocks of four vectors, of one vector, and the rest one by one.
template <class Job, class A, int kLanes>
MMSSL_INLINE void run_strip(const Job& job, int64_t begin, int64_t end) {
  int64_t column = begin;
  for (; column + 4 * kLanes <= end; column += 4 * kLanes) job.template strip<kLanes, 4>(column);
  for (; column + kLanes <= end; column += kLanes) job.template strip<kLanes, 1>(column);
  for (; column < end; ++column) job.template strip<1, 1>(column);
}

#define MMSSL_ENTRY(level, target, bytes)                                         \
  template <class Job, class A>                                                   \
  target void strip_##level(const Job& job, int64_t begin, int64_t end) {         \
    run_strip<Job, A, bytes / sizeof(A)>(job, begin, end);                        \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

template <class Job, class A>
void launch(const Job& job, const NormActArgs<A>& a, const Parallel& pool) {
  const auto& strip = at_level(strip_default<Job, A>, strip_avx2<Job, A>, strip_avx512<Job, A>);
  const int64_t strips = (a.columns + kStrip - 1) / kStrip;
  const int64_t per_task = std::max<int64_t>(1, kMinTaskElements / (a.rows * kStrip + 1));
  for_each_task(pool, (strips + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t last = std::min((task + 1) * per_task, strips);
    for (int64_t s = task * per_task; s < last; ++s) {
      strip(job, s * kStrip, std::min((s + 1) * kStrip, a.columns));
    }
  });
}

}  // namespace

template <class T, class A>
void norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean, A* rstd,
              const Parallel& pool) {
  launch<Forward<T, A>, A>({a, x, bias, eps, y, mean, rstd}, a, pool);
}

template <class T, class A>
void norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean,
                       const A* rstd, T* grad_x, A* grad_weight, A* grad_bias,
                       const Parallel& pool) {
  launch<Backward<T, A>, A>({a, grad_y, x, mean, rstd, grad_x, grad_weight, grad_bias}, a, pool);
}

template <class T, class A>
void norm_act_double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                              const A* up_bias, const T* grad_y, const T* x, const A* mean,
                              const A* rstd, T* out_grad_y, T* out_x, A* out_weight,
                              const Parallel& pool) {
  launch<DoubleBackward<T, A>, A>({a, up_x, up_weight, up_bias, grad_y, x, mean, rstd, out_grad_y,
                                   out_x, out_weight},
                                  a, pool);
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
