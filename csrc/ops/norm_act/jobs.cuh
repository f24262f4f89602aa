// The passes of norm_act as jobs of the kernels in kernels.cu: what they sum over a column's rows, what
// follows from the sums, and what they write.
#pragma once
#include <cmath>

#include "ops/norm_act/columns.h"
#include "ops/norm_act/kernels.cuh"

namespace mmssl::cuda {
namespace {

// A chunk of a group's rows, and the column of this thread.
struct Part {
  __device__ Part(int64_t rows, int64_t size, int64_t group, int64_t chunk, int64_t column)
      : size(size),
        group(group),
        chunk(chunk),
        start(group * rows),
        first(start + chunk * size),
        last(chunk * size + size < rows ? first + size : start + rows),
        column(column) {}
  // Whether its block writes what a column has once for each group, and once for all groups.
  __device__ bool writes_statistics() const { return chunk == 0; }
  __device__ bool writes_totals() const { return chunk == 0 && group == 0; }

  int64_t size, group, chunk;  // size: rows of a chunk
  int64_t start, first, last;  // rows: where the group and the chunk begin, and where the chunk ends
  int64_t column;
};

// An element of x, and what the passes make of it.
template <class T, class A>
struct Input {
  NormActArgs<A> a;
  const T* x;

  __device__ int64_t at(int64_t row, int64_t column) const { return row * a.columns + column; }
  // keep_scale where the element is kept, 0 elsewhere.
  __device__ A kept(int64_t at) const { return a.keep == nullptr ? A(1) : a.keep[at] * a.keep_scale; }
  __device__ A activation(int64_t at) const {
    const A v = widen(x[at]);
    return v > 0 ? v : a.slope * v;
  }
  // The derivative of the activation, times v. At 0 it is the slope, as in torch.
  __device__ A through(int64_t at, A v) const { return widen(x[at]) > 0 ? v : a.slope * v; }
};

// What the forward found out about a column.
template <class A>
struct Statistics {
  A mean, rstd;
};

// What both gradients read.
template <class T, class A>
struct Gradient : Input<T, A> {
  const T* grad_y;
  const A *mean, *rstd;

  __device__ int64_t of(int64_t group, int64_t column) const {
    return group * this->a.columns + column;
  }
  __device__ Statistics<A> terms(const Part& part) const {
    const int64_t c = of(part.group, part.column);
    return {mean[c], rstd[c]};
  }
  __device__ A upstream(int64_t at) const { return widen(grad_y[at]) * this->kept(at); }
};

// As torch.lerp forms it.
template <class A>
__device__ __forceinline__ A moved(A from, A to, A share) {
  return share < A(0.5) ? from + share * (to - from) : to - (to - from) * (1 - share);
}

// A job defines the sums of a column, kSums of them, and from them kFactors factors of its elements;
// terms() is what the sums of a chunk need, sums(group) are those of all chunks of a group.

template <class T, class A>
struct Forward : Input<T, A> {
  static constexpr int kSums = 2, kFactors = 3;
  using Sum = A;
  const A* bias;
  A eps;
  T* y;
  A *mean, *rstd;

  __device__ A terms(const Part& part) const {
    return this->activation(this->at(part.first, part.column));
  }
  __device__ void add(A origin, int64_t at, A (&sum)[kSums]) const {
    const A d = this->activation(at) - origin;
    sum[0] += d;
    sum[1] += d * d;
  }
  Running<A> running;

  template <class Sums>
  __device__ void finish(const Part& part, const Sums& sums, A (&factor)[kFactors]) const {
    const auto moments_of = [&](int64_t group) {
      const int64_t start = group * this->a.rows;
      return moments(sums(group), this->a.rows, part.size, [&](int64_t chunk) {
        return double(this->activation(this->at(start + chunk * part.size, part.column)));
      });
    };
    const Moments m = moments_of(part.group);
    const A r = A(1 / sqrt(m.variance + double(eps)));
    factor[0] = A(m.mean), factor[1] = this->a.weight[part.column] * r;
    factor[2] = bias[part.column];
    const int64_t to = part.group * this->a.columns + part.column;
    if (part.writes_statistics()) mean[to] = A(m.mean), rstd[to] = r;
    if (running.mean == nullptr || !part.writes_totals()) return;
    const double n = double(this->a.rows);
    const A momentum = A(running.momentum);
    A running_mean = running.mean[part.column], running_var = running.var[part.column];
    for (int64_t k = 0; k < this->a.groups; ++k) {
      const Moments of = k == part.group ? m : moments_of(k);
      running_mean = moved(running_mean, A(of.mean), momentum);
      running_var = moved(running_var, A(of.variance * (n / (n - 1))), momentum);
    }
    running.mean[part.column] = running_mean, running.var[part.column] = running_var;
    if (running.count != nullptr && part.column == 0) *running.count += this->a.groups;
  }
  __device__ void write(const A (&factor)[kFactors], int64_t at) const {
    const A out = (this->activation(at) - factor[0]) * factor[1] + factor[2];
    narrow(out * this->kept(at), y[at]);
  }
};

template <class T, class A>
struct Backward : Gradient<T, A> {
  static constexpr int kSums = 2, kFactors = 5;
  using Sum = A;
  T* grad_x;
  A *grad_weight, *grad_bias;

  __device__ void add(const Statistics<A>& of, int64_t at, A (&sum)[kSums]) const {
    const A g = this->upstream(at);
    sum[0] += g;
    sum[1] += g * ((this->activation(at) - of.mean) * of.rstd);
  }
  template <class Sums>
  __device__ void finish(const Part& part, const Sums& sums, A (&factor)[kFactors]) const {
    double g = sums(part.group).all(0), gx = sums(part.group).all(1);
    const double n = double(this->a.rows);
    const Statistics<A> of = this->terms(part);
    factor[0] = of.mean, factor[1] = of.rstd, factor[2] = this->a.weight[part.column] * of.rstd;
    factor[3] = A(g / n), factor[4] = A(gx / n);
    if (!part.writes_totals()) return;
    for (int64_t k = 1; k < this->a.groups; ++k) g += sums(k).all(0), gx += sums(k).all(1);
    grad_bias[part.column] = A(g), grad_weight[part.column] = A(gx);
  }
  // grad_x = leaky' * weight * rstd * (g - mean(g) - xhat * mean(g xhat))
  __device__ A gradient(const A (&factor)[kFactors], int64_t at) const {
    const A g = this->upstream(at), xhat = (this->activation(at) - factor[0]) * factor[1];
    return this->through(at, factor[2] * (g - factor[3] - xhat * factor[4]));
  }
  __device__ void write(const A (&factor)[kFactors], int64_t at) const {
    narrow(gradient(factor, at), grad_x[at]);
  }
};

// The gradient with more added to it: to x in the last group, and to the weight; and the sums of that
// for x, which follow from sums of what it consists of.
template <class T, class A>
struct AddedBackward : Backward<T, A> {
  static constexpr int kSums = 6, kFactors = Backward<T, A>::kFactors;
  using Sum = A;
  const T* more_x;
  const A* more_weight;
  A* sum_x;

  __device__ A more(int64_t at) const {
    const int64_t from = (this->a.groups - 1) * this->a.rows * this->a.columns;
    return more_x == nullptr || at < from ? A(0) : A(widen(more_x[at - from]));
  }
  __device__ void add(const Statistics<A>& of, int64_t at, A (&sum)[kSums]) const {
    const A g = this->upstream(at), xhat = (this->activation(at) - of.mean) * of.rstd;
    const A slope = this->through(at, A(1));
    sum[0] += g;
    sum[1] += g * xhat;
    sum[2] += slope * g;
    sum[3] += slope;
    sum[4] += slope * xhat;
    sum[5] += more(at);
  }
  template <class Sums>
  __device__ void finish(const Part& part, const Sums& sums, A (&factor)[kFactors]) const {
    Backward<T, A>::finish(part, sums, factor);
    if (!part.writes_totals()) return;
    const int64_t c = part.column;
    const double n = double(this->a.rows);
    double total = 0;
    for (int64_t k = 0; k < this->a.groups; ++k) {
      const ChunkSums of = sums(k);
      const double scale = double(this->a.weight[c]) * double(this->rstd[this->of(k, c)]);
      total += scale * (of.all(2) - of.all(0) / n * of.all(3) - of.all(1) / n * of.all(4));
      total += of.all(5);
    }
    sum_x[c] = A(total);
    if (more_weight != nullptr) this->grad_weight[c] += more_weight[c];
  }
  __device__ void write(const A (&factor)[kFactors], int64_t at) const {
    narrow(this->gradient(factor, at) + more(at), this->grad_x[at]);
  }
};

template <class T, class A>
struct DoubleBackward : Gradient<T, A> {
  static constexpr int kSums = 5, kFactors = 9;
  using Sum = A;
  const T* up_x;
  const A *up_weight, *up_bias;
  T *out_grad_y, *out_x;
  A* out_weight;

  __device__ void add(const Statistics<A>& of, int64_t at, A (&sum)[kSums]) const {
    const A g = this->upstream(at);
    const A xhat = (this->activation(at) - of.mean) * of.rstd;
    const A l = this->through(at, widen(up_x[at]));
    sum[0] += g;
    sum[1] += g * xhat;
    sum[2] += l;
    sum[3] += l * xhat;
    sum[4] += l * g;
  }
  template <class Sums>
  __device__ void finish(const Part& part, const Sums& sums, A (&factor)[kFactors]) const {
    const int64_t c = part.column, last = part.writes_totals() ? this->a.groups - 1 : part.group;
    double weight = 0;
    for (int64_t k = part.group; k <= last; ++k) {
      const SecondFactors f = second_factors(sums(k), double(this->a.rows), this->a.weight[c],
                                             this->rstd[this->of(k, c)],
                                             up_weight == nullptr ? 0 : double(up_weight[c]),
                                             up_bias == nullptr ? 0 : double(up_bias[c]));
      weight += f.weight;
      if (k > part.group) continue;
#pragma unroll
      for (int n = 0; n < 7; ++n) factor[n] = A(f.own[n]);
    }
    const Statistics<A> of = this->terms(part);
    factor[7] = of.mean, factor[8] = of.rstd;
    if (!part.writes_totals()) return;
    out_weight[c] = A(weight);
  }
  __device__ void write(const A (&factor)[kFactors], int64_t at) const {
    const A keep = this->kept(at), g = widen(this->grad_y[at]) * keep;
    const A xhat = (this->activation(at) - factor[7]) * factor[8];
    const A l = this->through(at, widen(up_x[at]));
    narrow(keep * (factor[0] * l + factor[1] + factor[2] * xhat), out_grad_y[at]);
    const A to_a = factor[3] * l + factor[4] * g + factor[5] + factor[6] * xhat;
    narrow(this->through(at, to_a), out_x[at]);
  }
};

}  // namespace
}  // namespace mmssl::cuda
