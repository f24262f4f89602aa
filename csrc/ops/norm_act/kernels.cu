// A pass is two launches of the same grid, a block for 32 columns of a chunk of a group's rows. In the first a
// block sums its chunk; in the second it adds the sums of all chunks in order, which gives what its
// columns need, and writes its numbers. The first chunk's blocks also write what belongs to a column.
#include "ops/norm_act/kernels.cuh"

#include <cmath>

#include "ops/norm_act/columns.h"

namespace mmssl::cuda {
namespace {

constexpr int kColumns = kWarp, kLines = kBlock / kColumns;  // of a block: a warp per row
// Rows of a thread whose sums are formed in A and then added in double, as in torch.
constexpr int kPartial = 16;
// More would only make the second launch add more sums.
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kMaxSums = 5;

// Rows of a chunk.
__host__ __device__ inline int64_t chunk_rows(int64_t rows) {
  constexpr int64_t kStep = kLines * kPartial;
  return ceil_div(ceil_div(rows, kMaxChunks), kStep) * kStep;
}

// The part of a matrix that belongs to this block, and the column of this thread.
struct Part {
  __device__ Part(int64_t rows, int64_t columns)
      : size(chunk_rows(rows)),
        chunks(ceil_div(rows, size)),
        group(blockIdx.x / ceil_div(columns, kColumns) / chunks),
        chunk(blockIdx.x / ceil_div(columns, kColumns) % chunks),
        start(group * rows),
        first(start + chunk * size),
        last(chunk * size + size < rows ? first + size : start + rows),
        column(blockIdx.x % ceil_div(columns, kColumns) * kColumns + threadIdx.x % kColumns),
        live(column < columns),
        line(threadIdx.x / kColumns) {}
  // Whether its block writes what a column has once for each group, and once for all groups.
  __device__ bool writes_statistics() const { return chunk == 0; }
  __device__ bool writes_totals() const { return chunk == 0 && group == 0; }

  int64_t size, chunks, group, chunk;
  int64_t start, first, last;  // rows: where the group and the chunk begin, and where the chunk ends
  int64_t column;
  bool live;  // the column exists
  int line;   // the row of this thread among those of the block
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
  template <class Sums>
  __device__ void finish(const Part& part, const Sums& sums, A (&factor)[kFactors]) const {
    const Moments m = moments(sums(part.group), this->a.rows, part.size, [&](int64_t chunk) {
      return double(this->activation(this->at(part.start + chunk * part.size, part.column)));
    });
    const A r = A(1 / sqrt(m.variance + double(eps)));
    factor[0] = A(m.mean), factor[1] = this->a.weight[part.column] * r;
    factor[2] = bias[part.column];
    const int64_t to = part.group * this->a.columns + part.column;
    if (part.writes_statistics()) mean[to] = A(m.mean), rstd[to] = r;
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
  __device__ void write(const A (&factor)[kFactors], int64_t at) const {
    const A g = this->upstream(at), xhat = (this->activation(at) - factor[0]) * factor[1];
    narrow(this->through(at, factor[2] * (g - factor[3] - xhat * factor[4])), grad_x[at]);
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

// totals (groups, chunks, kSums, H)
template <class Job>
__global__ void __launch_bounds__(kBlock)
    sums_kernel(const __grid_constant__ Job job, double* __restrict__ totals) {
  using A = typename Job::Sum;
  __shared__ double line_sums[Job::kSums][kLines][kColumns];
  const Part part(job.a.rows, job.a.columns);
  double total[Job::kSums] = {};
  if (part.live) {
    const auto terms = job.terms(part);
    for (int64_t begin = part.first + part.line; begin < part.last; begin += kLines * kPartial) {
      A sum[Job::kSums] = {};
#pragma unroll 4
      for (int n = 0; n < kPartial; ++n) {
        const int64_t row = begin + n * kLines;
        if (row < part.last) job.add(terms, job.at(row, part.column), sum);
      }
#pragma unroll
      for (int k = 0; k < Job::kSums; ++k) total[k] += sum[k];
    }
  }
  const int lane = threadIdx.x % kColumns;
#pragma unroll
  for (int k = 0; k < Job::kSums; ++k) line_sums[k][part.line][lane] = total[k];
  __syncthreads();
  if (part.line >= Job::kSums || !part.live) return;
  double sum = 0;  // a warp for each of the sums
  for (int line = 0; line < kLines; ++line) sum += line_sums[part.line][line][lane];
  const int64_t chunk = part.group * part.chunks + part.chunk;
  totals[(chunk * Job::kSums + part.line) * job.a.columns + part.column] = sum;
}

template <class Job>
__global__ void __launch_bounds__(kBlock)
    write_kernel(const __grid_constant__ Job job, const double* __restrict__ totals) {
  using A = typename Job::Sum;
  __shared__ A factors[Job::kFactors][kColumns];
  const Part part(job.a.rows, job.a.columns);
  const int lane = threadIdx.x % kColumns;
  A factor[Job::kFactors];
  if (part.line == 0 && part.live) {
    const auto sums = [&](int64_t group) {
      const int64_t of_group = part.chunks * Job::kSums * job.a.columns;
      return ChunkSums(totals + group * of_group, part.chunks, Job::kSums, job.a.columns,
                       part.column);
    };
    job.finish(part, sums, factor);
#pragma unroll
    for (int k = 0; k < Job::kFactors; ++k) factors[k][lane] = factor[k];
  }
  __syncthreads();
  if (!part.live) return;
#pragma unroll
  for (int k = 0; k < Job::kFactors; ++k) factor[k] = factors[k][lane];
#pragma unroll 4
  for (int64_t row = part.first + part.line; row < part.last; row += kLines) {
    job.write(factor, job.at(row, part.column));
  }
}

// As torch.lerp forms it.
template <class A>
__device__ __forceinline__ A moved(A from, A to, A share) {
  return share < A(0.5) ? from + share * (to - from) : to - (to - from) * (1 - share);
}

template <class A>
__global__ void __launch_bounds__(kBlock)
    running_kernel(const __grid_constant__ RunningArgs<A> a) {
  const int64_t c = global_thread();
  if (c >= a.columns) return;
  A mean = a.running_mean[c], var = a.running_var[c];
  for (int64_t k = 0; k < a.groups; ++k) {
    const double r = a.rstd[k * a.columns + c], n = double(a.rows);
    const A unbiased = A((1 / (r * r) - a.eps) * (n / (n - 1)));
    mean = moved(mean, a.mean[k * a.columns + c], A(a.momentum));
    var = moved(var, unbiased, A(a.momentum));
  }
  a.running_mean[c] = mean, a.running_var[c] = var;
}

template <class Job>
cudaError_t launch(const Job& job, double* scratch, cudaStream_t stream) {
  const int64_t rows = job.a.rows, columns = job.a.columns;
  if (rows == 0 || columns == 0) return cudaSuccess;
  const unsigned grid =
      unsigned(job.a.groups * ceil_div(rows, chunk_rows(rows)) * ceil_div(columns, kColumns));
  MMSSL_LAUNCH((sums_kernel<Job>), grid, kBlock, stream, job, scratch);
  MMSSL_LAUNCH((write_kernel<Job>), grid, kBlock, stream, job, scratch);
  return cudaGetLastError();
}

}  // namespace

int64_t norm_act_scratch(int64_t rows, int64_t columns, int64_t groups) {
  return rows == 0 ? 0 : groups * ceil_div(rows, chunk_rows(rows)) * kMaxSums * columns;
}

template <class T, class A>
cudaError_t launch_norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y,
                            A* mean, A* rstd, double* scratch, cudaStream_t stream) {
  return launch(Forward<T, A>{{a, x}, bias, eps, y, mean, rstd}, scratch, stream);
}

template <class T, class A>
cudaError_t launch_norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x,
                                     const A* mean, const A* rstd, T* grad_x, A* grad_weight,
                                     A* grad_bias, double* scratch, cudaStream_t stream) {
  const Backward<T, A> job{{{a, x}, grad_y, mean, rstd}, grad_x, grad_weight, grad_bias};
  return launch(job, scratch, stream);
}

template <class T, class A>
cudaError_t launch_norm_act_double_backward(const NormActArgs<A>& a, const T* up_x,
                                            const A* up_weight, const A* up_bias, const T* grad_y,
                                            const T* x, const A* mean, const A* rstd,
                                            T* out_grad_y, T* out_x, A* out_weight,
                                            double* scratch, cudaStream_t stream) {
  const DoubleBackward<T, A> job{{{a, x}, grad_y, mean, rstd}, up_x,  up_weight, up_bias,
                                 out_grad_y,                   out_x, out_weight};
  return launch(job, scratch, stream);
}

template <class A>
cudaError_t launch_norm_act_running(const RunningArgs<A>& a, cudaStream_t stream) {
  if (a.columns == 0) return cudaSuccess;
  MMSSL_LAUNCH((running_kernel<A>), num_blocks(a.columns), kBlock, stream, a);
  return cudaGetLastError();
}
template cudaError_t launch_norm_act_running(const RunningArgs<float>&, cudaStream_t);
template cudaError_t launch_norm_act_running(const RunningArgs<double>&, cudaStream_t);

#define MMSSL_INSTANTIATE(T, A)                                                                  \
  template cudaError_t launch_norm_act(const NormActArgs<A>&, const T*, const A*, A, T*, A*, A*, \
                                       double*, cudaStream_t);                                   \
  template cudaError_t launch_norm_act_backward(const NormActArgs<A>&, const T*, const T*,       \
                                                const A*, const A*, T*, A*, A*, double*,         \
                                                cudaStream_t);                                   \
  template cudaError_t launch_norm_act_double_backward(                                          \
      const NormActArgs<A>&, const T*, const A*, const A*, const T*, const T*, const A*,         \
      const A*, T*, T*, A*, double*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
