// Row pointers are sums over the lengths of the rows, by one block per matrix. The transpose is a
// counting sort without a sort: the edges are cut into chunks, the edges of a column are counted by
// chunk, and a running sum over the chunks says where a chunk's edges of a column go. A warp places the
// edges of its chunk in order, 32 at a time, so that the order within a column is that of the rows.
#include "ops/index/kernels.cuh"

#include <algorithm>
#include <cmath>

namespace mmssl::cuda {
namespace {

constexpr int kScanBlock = 1024;
constexpr int64_t kMaxChunks = 1024;
// Counters of all matrices together, unless there are more edges: clearing and adding them up takes
// microseconds.
constexpr int64_t kCounters = 1 << 22;

struct Chunks {
  int64_t count, size;  // size: a multiple of 32 edges
};

Chunks chunks_of(int64_t matrices, int64_t columns, int64_t capacity) {
  const int64_t counters = std::max(kCounters, 4 * matrices * capacity);
  const int64_t most = counters / std::max<int64_t>(1, matrices * columns);
  const int64_t count = std::clamp<int64_t>(most, 1, kMaxChunks);
  const int64_t size = ceil_div(std::max<int64_t>(1, ceil_div(capacity, count)), kWarp) * kWarp;
  return {ceil_div(std::max<int64_t>(1, capacity), size), size};
}

// counts (M, chunks, C), then totals (M, C).
struct Counters {
  int32_t* counts;
  int64_t chunks, size, columns;

  __device__ int32_t* of(int64_t matrix, int64_t position, int64_t column) const {
    return counts + (matrix * chunks + position / size) * columns + column;
  }
  __host__ __device__ int32_t* totals(int64_t matrices) const {
    return counts + matrices * chunks * columns;
  }
};

// kScaled: whether the powers of the lengths may be asked for.
struct PickedLength {
  static constexpr bool kScaled = false;
  RowsArgs a;
  __device__ int64_t operator()(int64_t, int64_t row) const {
    return a.rowptr[a.pick[row] + 1] - a.rowptr[a.pick[row]];
  }
};

__device__ __forceinline__ int64_t list_length(const int32_t* list, int64_t k) {
  int64_t length = 0;
  for (int64_t j = 0; j < k; ++j) length += list[j] >= 0;
  return length;
}

struct ListLength {
  static constexpr bool kScaled = true;
  ListsArgs a;
  int64_t rows;
  __device__ int64_t operator()(int64_t matrix, int64_t row) const {
    const int64_t length = list_length(a.lists + (matrix * rows + row) * a.k, a.k);
    return length > 0 ? length : a.rowptr[row + 1] - a.rowptr[row];
  }
};

struct Total {
  static constexpr bool kScaled = true;
  const int32_t* totals;
  int64_t columns;
  __device__ int64_t operator()(int64_t matrix, int64_t column) const {
    return totals[matrix * columns + column];
  }
};

__device__ __forceinline__ float scale_of(int64_t length, bool root) {
  const float degree = float(length);
  return degree > 0 ? 1 / (root ? sqrtf(degree) : degree) : 0;
}

// pointer (M, count + 1): the sums over the lengths before, a block per matrix. scales (M, count) may be
// null.
template <class Length>
__global__ void __launch_bounds__(kScanBlock)
    pointer_kernel(const __grid_constant__ Length length, int64_t count, int64_t* pointers,
                   float* scales, bool root) {
  __shared__ int64_t sums[2][kScanBlock];
  const int64_t matrix = blockIdx.x, each = ceil_div(count, kScanBlock);
  const int thread = int(threadIdx.x);
  const int64_t begin = thread * each, end = begin + each < count ? begin + each : count;
  int64_t* pointer = pointers + matrix * (count + 1);
  int64_t own = 0;
  for (int64_t i = begin; i < end; ++i) own += length(matrix, i);
  sums[0][thread] = own;
  int from = 0;
  for (int step = 1; step < kScanBlock; step *= 2, from = 1 - from) {
    __syncthreads();
    const int64_t before = thread >= step ? sums[from][thread - step] : 0;
    sums[1 - from][thread] = sums[from][thread] + before;
  }
  __syncthreads();
  int64_t total = sums[from][thread] - own;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t size = length(matrix, i);
    pointer[i] = total;
    total += size;
    if constexpr (Length::kScaled) {
      if (scales != nullptr) scales[matrix * count + i] = scale_of(size, root);
    }
  }
  if (thread == kScanBlock - 1) pointer[count] = sums[from][thread];
}

__global__ void __launch_bounds__(kBlock)
    fill_rows_kernel(const __grid_constant__ RowsArgs a, const __grid_constant__ IndexArrays out,
                     const __grid_constant__ Counters counters) {
  const int64_t p = global_thread();
  if (p >= out.capacity) return;
  const int64_t used = out.rowptr[out.rows];
  const bool live = p < used;
  if (!live && used == 0) {  // nothing to repeat
    a.position[p] = a.item[p] = 0;
    a.live[p] = false, out.col[p] = 0;
    return;
  }
  const int64_t at = live ? p : used - 1, row = row_of(out.rowptr, out.rows, at);
  const int32_t item = a.col[a.rowptr[a.pick[row]] + at - out.rowptr[row]];
  a.position[p] = row, a.item[p] = item, a.live[p] = live, out.col[p] = item;
  if (live) atomicAdd(counters.of(0, p, item), 1);
}

// A thread per slot of a list, and one per edge of the other matrix.
__global__ void __launch_bounds__(kBlock)
    fill_lists_kernel(const __grid_constant__ ListsArgs a, const __grid_constant__ IndexArrays out,
                      const __grid_constant__ Counters counters) {
  const int64_t slots = out.rows * a.k, each = slots + a.nnz;  // = n
  const int64_t matrix = global_thread() / each, at = global_thread() % each;
  if (matrix >= out.matrices) return;
  const int64_t* rowptr = out.rowptr + matrix * (out.rows + 1);
  int32_t* col = out.col + matrix * out.capacity;
  const int32_t* lists = a.lists + matrix * slots;
  if (at >= rowptr[out.rows]) col[at] = 0;
  int64_t position;
  int32_t item;
  if (at < slots) {
    const int32_t* list = lists + at / a.k * a.k;
    item = lists[at];
    if (item < 0) return;
    position = rowptr[at / a.k];
    for (int64_t j = 0; j < a.k; ++j) position += list[j] >= 0 && list[j] < item;
  } else {
    const int64_t edge = at - slots, row = row_of(a.rowptr, out.rows, edge);
    if (list_length(lists + row * a.k, a.k) > 0) return;
    item = a.col[edge];
    position = rowptr[row] + edge - a.rowptr[row];
  }
  col[position] = item;
  atomicAdd(counters.of(matrix, position, item), 1);
}

// Counts become where a chunk's edges begin within their column.
__global__ void __launch_bounds__(kBlock)
    chunk_sums_kernel(const __grid_constant__ Counters counters, int64_t matrices) {
  const int64_t at = global_thread();
  if (at >= matrices * counters.columns) return;
  const int64_t matrix = at / counters.columns, column = at % counters.columns;
  int32_t total = 0;
  for (int64_t chunk = 0; chunk < counters.chunks; ++chunk) {
    int32_t* count = counters.of(matrix, chunk * counters.size, column);
    const int32_t own = *count;
    *count = total;
    total += own;
  }
  counters.totals(matrices)[at] = total;
}

__global__ void __launch_bounds__(kBlock)
    place_kernel(const __grid_constant__ IndexArrays out, const __grid_constant__ Counters counters) {
  const int64_t warp = global_thread() / kWarp;
  const int64_t matrix = warp / counters.chunks, chunk = warp % counters.chunks;
  if (matrix >= out.matrices) return;
  const int lane = int(threadIdx.x % kWarp);
  const int64_t* rowptr = out.rowptr + matrix * (out.rows + 1);
  const int64_t* t_rowptr = out.t_rowptr + matrix * (out.columns + 1);
  const int64_t used = rowptr[out.rows], begin = chunk * counters.size;
  const int64_t end = begin + counters.size < out.capacity ? begin + counters.size : out.capacity;
  for (int64_t first = begin; first < end; first += kWarp) {
    const int64_t p = first + lane;
    const bool live = p < used;
    const int32_t item = live ? out.col[matrix * out.capacity + p] : -1;
    int before = 0;  // edges of the same column among the lanes before
    bool last = true;
#pragma unroll 1
    for (int mask = 1; mask < kWarp; ++mask) {
      const bool same = __shfl_xor_sync(kAllLanes, item, mask) == item;
      if (same && (lane ^ mask) < lane) ++before;
      if (same && (lane ^ mask) > lane) last = false;
    }
    int32_t* count = counters.of(matrix, first, live ? item : 0);
    const int32_t base = live ? *count : 0;
    __syncwarp();
    if (live && last) *count = base + before + 1;
    __syncwarp();
    if (p >= end) continue;
    const int64_t row = row_of(rowptr, out.rows, live ? p : used - 1);
    const int64_t to = live ? t_rowptr[item] + base + before : p;
    out.t_col[matrix * out.capacity + to] = int32_t(row);
    if (out.t_edge != nullptr) out.t_edge[matrix * out.capacity + to] = p;
  }
}

__global__ void __launch_bounds__(kBlock)
    scale_kernel(const int64_t* __restrict__ rowptr, int64_t rows, bool root,
                 float* __restrict__ scale) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  scale[row] = scale_of(rowptr[row + 1] - rowptr[row], root);
}

// A thread per slot of a new list.
__global__ void __launch_bounds__(kBlock) store_kernel(const __grid_constant__ StoredLists a) {
  const int64_t at = global_thread(), slots = a.count * a.k;
  if (at >= a.matrices * slots) return;
  const int64_t matrix = at / slots, slot = at % slots;
  const int64_t row = matrix * a.rows + a.pick[slot / a.k];
  a.lists[row * a.k + slot % a.k] = int32_t(a.top[matrix][slot]);
}

Counters counters_in(void* scratch, const IndexArrays& out) {
  const Chunks chunks = chunks_of(out.matrices, out.columns, out.capacity);
  return {static_cast<int32_t*>(scratch), chunks.count, chunks.size, out.columns};
}

// After the row pointers and the edges.
cudaError_t transpose(const IndexArrays& out, const Counters& counters, cudaStream_t stream) {
  const int64_t M = out.matrices;
  if (out.columns > 0) {
    MMSSL_LAUNCH(chunk_sums_kernel, num_blocks(M * out.columns), kBlock, stream, counters, M);
  }
  MMSSL_LAUNCH((pointer_kernel<Total>), unsigned(M), kScanBlock, stream,
               (Total{counters.totals(M), out.columns}), out.columns, out.t_rowptr, out.t_scale, out.root);
  if (out.capacity > 0) {
    MMSSL_LAUNCH(place_kernel, num_blocks(M * counters.chunks * kWarp), kBlock, stream, out, counters);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t index_scratch(int64_t matrices, int64_t columns, int64_t capacity) {
  return (chunks_of(matrices, columns, capacity).count + 1) * matrices * columns * sizeof(int32_t);
}

cudaError_t launch_index_of_rows(const RowsArgs& a, const IndexArrays& out, void* scratch,
                                 cudaStream_t stream) {
  const Counters counters = counters_in(scratch, out);
  const cudaError_t cleared =
      cudaMemsetAsync(scratch, 0, index_scratch(1, out.columns, out.capacity), stream);
  if (cleared != cudaSuccess) return cleared;
  MMSSL_LAUNCH((pointer_kernel<PickedLength>), 1u, kScanBlock, stream, PickedLength{a}, out.rows,
               out.rowptr, nullptr, false);
  if (out.capacity > 0) {
    MMSSL_LAUNCH(fill_rows_kernel, num_blocks(out.capacity), kBlock, stream, a, out, counters);
  }
  return transpose(out, counters, stream);
}

cudaError_t launch_index_of_lists(const ListsArgs& a, const IndexArrays& out, void* scratch,
                                  cudaStream_t stream) {
  if (out.matrices == 0) return cudaSuccess;
  const Counters counters = counters_in(scratch, out);
  const cudaError_t cleared = cudaMemsetAsync(
      scratch, 0, index_scratch(out.matrices, out.columns, out.capacity), stream);
  if (cleared != cudaSuccess) return cleared;
  MMSSL_LAUNCH((pointer_kernel<ListLength>), unsigned(out.matrices), kScanBlock, stream,
               (ListLength{a, out.rows}), out.rows, out.rowptr, out.scale, out.root);
  if (out.capacity > 0) {
    MMSSL_LAUNCH(fill_lists_kernel, num_blocks(out.matrices * out.capacity), kBlock, stream, a, out,
                 counters);
  }
  return transpose(out, counters, stream);
}

cudaError_t launch_store_lists(const StoredLists& a, cudaStream_t stream) {
  const int64_t threads = a.matrices * a.count * a.k;
  if (threads == 0) return cudaSuccess;
  MMSSL_LAUNCH(store_kernel, num_blocks(threads), kBlock, stream, a);
  return cudaGetLastError();
}

cudaError_t launch_degree_scale(const int64_t* rowptr, int64_t rows, bool root, float* scale,
                                cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  MMSSL_LAUNCH(scale_kernel, num_blocks(rows), kBlock, stream, rowptr, rows, root, scale);
  return cudaGetLastError();
}

}  // namespace mmssl::cuda
