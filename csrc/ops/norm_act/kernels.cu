// Few rows: one launch, in which a block owns 8 columns of all groups; it sums them, finishes the sums and
// writes its numbers. More rows: two launches of the same grid, a block for 32 columns of a chunk of a
// group's rows. In the first a block sums its chunk; in the second it adds the sums of all chunks in
// order, which gives what its columns need, and writes its numbers. The first chunk's blocks also write
// what belongs to a column.
#include "ops/norm_act/jobs.cuh"

namespace mmssl::cuda {
namespace {

constexpr int kColumns = kWarp, kLines = kBlock / kColumns;  // of a block: a warp per row
// Rows of a thread whose sums are formed in A and then added in double, as in torch.
constexpr int kPartial = 16;
// More would only make the second launch add more sums.
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kMaxSums = 6;

// Rows of a chunk.
__host__ __device__ inline int64_t chunk_rows(int64_t rows) {
  constexpr int64_t kStep = kLines * kPartial;
  return ceil_div(ceil_div(rows, kMaxChunks), kStep) * kStep;
}

// A block of the one launch, its columns, and the most rows and groups it takes.
constexpr int kWholeBlock = 512, kWholeColumns = 8, kWholeLines = kWholeBlock / kWholeColumns;
constexpr int64_t kWholeRows = 1 << 14, kWholeGroups = 4;

bool takes_one_launch(int64_t rows, int64_t groups) {
  return groups <= kWholeGroups && groups * rows <= kWholeRows;
}

// A thread's share of the sums of a part: every kStep-th row from `line` on.
template <int kStep, class Job>
__device__ __forceinline__ void add_rows(const Job& job, const Part& part, int line,
                                         double (&total)[Job::kSums]) {
  const auto terms = job.terms(part);
  for (int64_t begin = part.first + line; begin < part.last; begin += kStep * kPartial) {
    typename Job::Sum sum[Job::kSums] = {};
#pragma unroll 4
    for (int n = 0; n < kPartial; ++n) {
      const int64_t row = begin + n * kStep;
      if (row < part.last) job.add(terms, job.at(row, part.column), sum);
    }
#pragma unroll
    for (int k = 0; k < Job::kSums; ++k) total[k] += sum[k];
  }
}

template <class Job>
__global__ void __launch_bounds__(kWholeBlock, 1) whole_kernel(const __grid_constant__ Job job) {
  constexpr int kWarps = kWholeBlock / kWarp;
  __shared__ double of_warp[kWholeGroups][Job::kSums][kWholeColumns][kWarps];
  __shared__ double totals[kWholeGroups][Job::kSums][kWholeColumns];
  __shared__ typename Job::Sum factors[kWholeGroups][Job::kFactors][kWholeColumns];
  const int thread = int(threadIdx.x), lane = thread % kWholeColumns, line = thread / kWholeColumns;
  const int64_t column = int64_t(blockIdx.x) * kWholeColumns + lane;
  const bool live = column < job.a.columns;
  const auto part_of = [&](int64_t group) {
    return Part(job.a.rows, job.a.rows, group, 0, column);
  };
  for (int64_t group = 0; group < job.a.groups; ++group) {
    double total[Job::kSums] = {};
    if (live) add_rows<kWholeLines>(job, part_of(group), line, total);
#pragma unroll
    for (int k = 0; k < Job::kSums; ++k) {
#pragma unroll
      for (int mask = kWholeColumns; mask < kWarp; mask *= 2) {
        total[k] += __shfl_xor_sync(kAllLanes, total[k], mask);
      }
      if (thread % kWarp < kWholeColumns) of_warp[group][k][lane][thread / kWarp] = total[k];
    }
  }
  __syncthreads();
  const int64_t count = job.a.groups * Job::kSums * kWholeColumns;
  for (int64_t at = thread; at < count; at += kWholeBlock) {
    double sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += (&of_warp[0][0][0][0])[at * kWarps + warp];
    (&totals[0][0][0])[at] = sum;
  }
  __syncthreads();
  if (live && line < job.a.groups) {
    const auto sums = [&](int64_t group) {
      return ChunkSums(&totals[group][0][0], 1, Job::kSums, kWholeColumns, lane);
    };
    typename Job::Sum factor[Job::kFactors];
    job.finish(part_of(line), sums, factor);
#pragma unroll
    for (int k = 0; k < Job::kFactors; ++k) factors[line][k][lane] = factor[k];
  }
  __syncthreads();
  if (!live) return;
  for (int64_t group = 0; group < job.a.groups; ++group) {
    const Part part = part_of(group);
    typename Job::Sum factor[Job::kFactors];
#pragma unroll
    for (int k = 0; k < Job::kFactors; ++k) factor[k] = factors[group][k][lane];
#pragma unroll 4
    for (int64_t row = part.first + line; row < part.last; row += kWholeLines) {
      job.write(factor, job.at(row, column));
    }
  }
}

// The part of a block in a launch over chunks, of which a group has `chunks`.
__device__ __forceinline__ Part part_of_block(int64_t rows, int64_t columns, int chunks) {
  const unsigned slabs = unsigned(ceil_div(columns, kColumns)), chunk = blockIdx.x / slabs;
  return Part(rows, chunk_rows(rows), chunk / chunks, chunk % chunks,
              int64_t(blockIdx.x % slabs) * kColumns + threadIdx.x % kColumns);
}

// totals (groups, chunks, kSums, H)
template <class Job>
__global__ void __launch_bounds__(kBlock, 2)
    sums_kernel(const __grid_constant__ Job job, int chunks, double* __restrict__ totals) {
  __shared__ double line_sums[Job::kSums][kLines][kColumns];
  const Part part = part_of_block(job.a.rows, job.a.columns, chunks);
  const bool live = part.column < job.a.columns;
  const int lane = threadIdx.x % kColumns, line = threadIdx.x / kColumns;
  double total[Job::kSums] = {};
  if (live) add_rows<kLines>(job, part, line, total);
#pragma unroll
  for (int k = 0; k < Job::kSums; ++k) line_sums[k][line][lane] = total[k];
  __syncthreads();
  if (line >= Job::kSums || !live) return;
  double sum = 0;  // a warp for each of the sums
  for (int n = 0; n < kLines; ++n) sum += line_sums[line][n][lane];
  const int64_t chunk = part.group * chunks + part.chunk;
  totals[(chunk * Job::kSums + line) * job.a.columns + part.column] = sum;
}

template <class Job>
__global__ void __launch_bounds__(kBlock, 2)
    write_kernel(const __grid_constant__ Job job, int chunks, const double* __restrict__ totals) {
  using A = typename Job::Sum;
  __shared__ A factors[Job::kFactors][kColumns];
  const Part part = part_of_block(job.a.rows, job.a.columns, chunks);
  const bool live = part.column < job.a.columns;
  const int lane = threadIdx.x % kColumns, line = threadIdx.x / kColumns;
  A factor[Job::kFactors];
  if (line == 0 && live) {
    const auto sums = [&](int64_t group) {
      return ChunkSums(totals + group * chunks * Job::kSums * job.a.columns, chunks, Job::kSums,
                       job.a.columns, part.column);
    };
    job.finish(part, sums, factor);
#pragma unroll
    for (int k = 0; k < Job::kFactors; ++k) factors[k][lane] = factor[k];
  }
  __syncthreads();
  if (!live) return;
#pragma unroll
  for (int k = 0; k < Job::kFactors; ++k) factor[k] = factors[k][lane];
#pragma unroll 4
  for (int64_t row = part.first + line; row < part.last; row += kLines) {
    job.write(factor, job.at(row, part.column));
  }
}

template <class Job>
cudaError_t launch(const Job& job, double* scratch, cudaStream_t stream) {
  const int64_t rows = job.a.rows, columns = job.a.columns;
  if (rows == 0 || columns == 0) return cudaSuccess;
  if (takes_one_launch(rows, job.a.groups)) {
    MMSSL_LAUNCH((whole_kernel<Job>), unsigned(ceil_div(columns, kWholeColumns)), kWholeBlock, stream,
                 job);
    return cudaGetLastError();
  }
  const int chunks = int(ceil_div(rows, chunk_rows(rows)));
  const unsigned grid = unsigned(job.a.groups * chunks * ceil_div(columns, kColumns));
  MMSSL_LAUNCH((sums_kernel<Job>), grid, kBlock, stream, job, chunks, scratch);
  MMSSL_LAUNCH((write_kernel<Job>), grid, kBlock, stream, job, chunks, scratch);
  return cudaGetLastError();
}

}  // namespace

int64_t norm_act_scratch(int64_t rows, int64_t columns, int64_t groups) {
  if (rows == 0 || takes_one_launch(rows, groups)) return 0;
  return groups * ceil_div(rows, chunk_rows(rows)) * kMaxSums * columns;
}

template <class T, class A>
cudaError_t launch_norm_act(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y,
                            A* mean, A* rstd, double* scratch, cudaStream_t stream,
                            const Running<A>& running) {
  return launch(Forward<T, A>{{a, x}, bias, eps, y, mean, rstd, running}, scratch, stream);
}

template <class T, class A>
cudaError_t launch_norm_act_backward(const NormActArgs<A>& a, const T* grad_y, const T* x,
                                     const A* mean, const A* rstd, T* grad_x, A* grad_weight,
                                     A* grad_bias, double* scratch, cudaStream_t stream) {
  const Backward<T, A> job{{{a, x}, grad_y, mean, rstd}, grad_x, grad_weight, grad_bias};
  return launch(job, scratch, stream);
}

template <class T, class A>
cudaError_t launch_norm_act_added(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean,
                                  const A* rstd, const T* more_x, const A* more_weight, T* grad_x,
                                  A* grad_weight, A* grad_bias, A* sum_x, double* scratch,
                                  cudaStream_t stream) {
  const Backward<T, A> job{{{a, x}, grad_y, mean, rstd}, grad_x, grad_weight, grad_bias};
  return launch(AddedBackward<T, A>{job, more_x, more_weight, sum_x}, scratch, stream);
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

#define MMSSL_INSTANTIATE(T, A)                                                                  \
  template cudaError_t launch_norm_act(const NormActArgs<A>&, const T*, const A*, A, T*, A*, A*, \
                                       double*, cudaStream_t, const Running<A>&);                \
  template cudaError_t launch_norm_act_backward(const NormActArgs<A>&, const T*, const T*,       \
                                                const A*, const A*, T*, A*, A*, double*,         \
                                                cudaStream_t);                                   \
  template cudaError_t launch_norm_act_added(const NormActArgs<A>&, const T*, const T*,          \
                                             const A*, const A*, const T*, const A*, T*, A*, A*, \
                                             A*, double*, cudaStream_t);                         \
  template cudaError_t launch_norm_act_double_backward(                                          \
      const NormActArgs<A>&, const T*, const A*, const A*, const T*, const T*, const A*,         \
      const A*, T*, T*, A*, double*, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
