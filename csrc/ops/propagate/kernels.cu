// A group of kLanes lanes of a warp owns a row, or of a wide row kLanes * kVec columns; each lane owns
// kVec neighboring columns and gathers them with one load of 16 bytes. A row with more than kChunkEdges edges is left to the groups of
// the chunks that it spans: the edges of the whole matrix are cut into chunks of kChunkEdges, so
// that the host needs to know no row and nothing waits for the device, and a second kernel adds the
// sums of a row's chunks in order, without atomics.
//
// A launch takes up to kMaxProducts products, passed by value in its parameters; neighboring blocks
// belong to the same product.
#include "ops/propagate/kernels.cuh"

#include <algorithm>
#include <vector>

namespace mmssl::cuda {
namespace {

// Far below the 4 KB limit for a kernel's parameters, and more than a model's modalities in both
// directions.
constexpr int kMaxProducts = 16;
constexpr int kEdgesPerGroup = 32;  // of spmm_value_grad: spreads the search for the row

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
  constexpr int operator()() const { return kValue; }
};

template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T v[kVec];
};

template <class T, int kVec>
__device__ __forceinline__ Pack<T, kVec> load(const T* p) {
  return *reinterpret_cast<const Pack<T, kVec>*>(p);
}

template <class A>
__device__ __forceinline__ A edge_weight(const SparseArgs<A>& a, int64_t p, int32_t c) {
  A weight = 1;
  if (a.value != nullptr) weight = a.value[a.edge == nullptr ? p : a.edge[p]];
  if (a.col_scale != nullptr) weight *= a.col_scale[c];
  return weight;
}

// The positions [begin, end) of one row that a group sums.
struct Span {
  int64_t begin, end;
};

// Piece 2j is the part of chunk j that belongs to the long row at its head, piece 2j + 1 the part
// that belongs to another long row that begins in it. A piece is empty if no such row exists.
template <class A>
__device__ __forceinline__ Span find_piece(const SparseArgs<A>& a, int64_t piece) {
  const int64_t begin = piece / 2 * kChunkEdges;
  const int64_t end = begin + kChunkEdges < a.nnz ? begin + kChunkEdges : a.nnz;
  const bool at_head = piece % 2 == 0;
  const int64_t row = row_of(a.rowptr, a.rows, at_head ? begin : end - 1);
  const int64_t first = a.rowptr[row], stop = a.rowptr[row + 1];
  if (stop - first <= kChunkEdges || (!at_head && first <= begin)) return {0, 0};
  return {first > begin ? first : begin, stop < end ? stop : end};
}

template <class T, class A>
struct Entry {
  SparseProduct<T, A> p;
  A* scratch;      // (2 * chunks, d): sums of the pieces of long rows
  int64_t chunks;  // 0 where no row can be long
  int parts;       // groups that share a row: they take different columns
};

template <class T, class A>
struct Table {
  int count = 0;
  unsigned first_block[kMaxProducts + 1] = {};  // blocks of the products before this one
  Entry<T, A> entry[kMaxProducts];
};

template <class T, class A>
__device__ __forceinline__ int product_of_block(const Table<T, A>& table) {
  int n = 0;
  while (blockIdx.x >= table.first_block[n + 1]) ++n;
  return n;
}

// Columns [k, k + kVec) of a row of y, from their sums times row_scale.
template <int kVec, class T, class A>
__device__ __forceinline__ void write_columns(const SparseProduct<T, A>& p, int64_t row, int64_t k,
                                              const Pack<A, kVec>& sum) {
  const Epilogue<T, A>& e = p.epilogue;
  Pack<T, kVec> result;
  if (e.base == nullptr) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) narrow(sum.v[i], result.v[i]);
  } else {
    const A factor = e.factor == nullptr ? e.scale : e.scale * e.factor[row];
    const Pack<T, kVec> base = load<T, kVec>(e.base + row * e.base_stride + k);
#pragma unroll
    for (int i = 0; i < kVec; ++i) narrow(factor * (widen(base.v[i]) + sum.v[i]), result.v[i]);
  }
  *reinterpret_cast<Pack<T, kVec>*>(p.y + row * p.y_stride + k) = result;
}

// Tasks [0, R) of a product are its rows, the next 2 * chunks the pieces of its long rows; each is
// done by `parts` neighboring groups.
template <class T, class A, int kVec, int kLanes, bool kWeighted>
__global__ void __launch_bounds__(kBlock, 4)
    spmm_kernel(const __grid_constant__ Table<T, A> table) {
  const int n = product_of_block(table);
  const Entry<T, A>& e = table.entry[n];
  const SparseArgs<A>& a = e.p.a;
  const int64_t thread = int64_t(blockIdx.x - table.first_block[n]) * kBlock + threadIdx.x;
  const int64_t d = e.p.d;
  int64_t group = thread / kLanes, k = int64_t(threadIdx.x % kLanes) * kVec;
  if (e.parts > 1) {
    k += group % e.parts * (kLanes * kVec);
    group /= e.parts;
  }
  if (group >= a.rows + 2 * e.chunks || k >= d) return;
  const bool whole_row = group < a.rows;
  const Span span = whole_row ? Span{a.rowptr[group], a.rowptr[group + 1]}
                              : find_piece(a, group - a.rows);
  if (whole_row ? span.end - span.begin > kChunkEdges : span.begin == span.end) return;
  const A scale = whole_row && a.row_scale != nullptr ? a.row_scale[group] : A(1);
  const T* __restrict__ x = e.p.x;
  Pack<A, kVec> sum = {};
#pragma unroll 8
  for (int64_t p = span.begin; p < span.end; ++p) {
    const int32_t c = a.col[p];
    const Pack<T, kVec> row = load<T, kVec>(x + c * e.p.x_stride + k);
    const A weight = kWeighted ? edge_weight(a, p, c) : A(1);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum.v[i] += weight * widen(row.v[i]);
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum.v[i] *= scale;
  if (whole_row) {
    write_columns(e.p, group, k, sum);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) e.scratch[(group - a.rows) * d + k + i] = sum.v[i];
  }
}

// A warp for every 32 columns of a chunk: where a long row begins in it, adds up that row's pieces.
template <class T, class A>
__global__ void __launch_bounds__(kBlock) join_kernel(const __grid_constant__ Table<T, A> table) {
  const int n = product_of_block(table);
  const Entry<T, A>& e = table.entry[n];
  const SparseArgs<A>& a = e.p.a;
  const int64_t thread = int64_t(blockIdx.x - table.first_block[n]) * kBlock + threadIdx.x;
  const int64_t d = e.p.d, warps = ceil_div(d, kWarp), chunk = thread / kWarp / warps;
  const int64_t k = thread / kWarp % warps * kWarp + threadIdx.x % kWarp;
  if (chunk >= e.chunks || k >= d) return;
  const int64_t begin = chunk * kChunkEdges;
  const int64_t end = begin + kChunkEdges < a.nnz ? begin + kChunkEdges : a.nnz;
  const int64_t row = row_of(a.rowptr, a.rows, end - 1);  // a long row that begins here gets this far
  const int64_t first = a.rowptr[row], stop = a.rowptr[row + 1];
  if (stop - first <= kChunkEdges || first < begin) return;
  const A scale = a.row_scale == nullptr ? A(1) : a.row_scale[row];
  const int64_t last = (stop - 1) / kChunkEdges;
  A sum = e.scratch[(2 * chunk + (first == begin ? 0 : 1)) * d + k];
  for (int64_t c = chunk + 1; c <= last; ++c) sum += e.scratch[2 * c * d + k];
  write_columns(e.p, row, k, Pack<A, 1>{scale * sum});
}

// Group j takes positions [j, j + 1) * kEdgesPerGroup. Every lane of a warp runs every iteration,
// since all of them take part in the shuffles.
template <class T, class A, int kVec, int kLanes>
__global__ void __launch_bounds__(kBlock)
    value_grad_kernel(SparseArgs<A> a, const T* __restrict__ g, const T* __restrict__ x,
                      A* __restrict__ out, int64_t d) {
  const int64_t group = global_thread() / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t begin = group * kEdgesPerGroup;
  const int64_t edges = a.rowptr[a.rows];  // the arrays may be longer; what is behind has no gradient
  int64_t row = begin < edges ? row_of(a.rowptr, a.rows, begin) : 0;
#pragma unroll 1
  for (int n = 0; n < kEdgesPerGroup; ++n) {
    const int64_t p = begin + n;
    const bool live = p < edges;
    A sum = 0;
    int32_t c = 0;
    if (live) {
      while (p >= a.rowptr[row + 1]) ++row;
      c = a.col[p];
#pragma unroll 2
      for (int64_t k = int64_t(lane) * kVec; k < d; k += kLanes * kVec) {
        const Pack<T, kVec> u = load<T, kVec>(g + row * d + k), v = load<T, kVec>(x + c * d + k);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum += widen(u.v[i]) * widen(v.v[i]);
      }
    }
    sum = sum_of_lanes<kLanes>(sum);
    if (live && lane == 0) {
      A scale = a.row_scale == nullptr ? A(1) : a.row_scale[row];
      if (a.col_scale != nullptr) scale *= a.col_scale[c];
      out[a.edge == nullptr ? p : a.edge[p]] = scale * sum;
    } else if (lane == 0 && p < a.nnz) {
      out[a.edge == nullptr ? p : a.edge[p]] = 0;
    }
  }
}

// Distributes a row of d numbers over lanes: 16-byte loads where every row starts on a multiple of
// 16 bytes, and just enough lanes for a row, so that short rows share a warp.
struct Layout {
  int vec, lanes;
  bool operator==(const Layout&) const = default;
};

template <class T>
Layout layout_of(int64_t d, bool aligned) {
  constexpr int kWide = 16 / sizeof(T);
  const int vec = aligned && d % kWide == 0 ? kWide : 1;
  int lanes = 4;
  while (lanes < 32 && int64_t(lanes) * vec < d) lanes *= 2;
  return {vec, lanes};
}

// Calls f(kVec, kLanes) as constants.
template <class T, class F>
void choose(Layout layout, const F& f) {
  const auto with_lanes = [&](auto vec) {
    switch (layout.lanes) {
      case 4:
        return f(vec, Constant<4>{});
      case 8:
        return f(vec, Constant<8>{});
      case 16:
        return f(vec, Constant<16>{});
      default:
        return f(vec, Constant<32>{});
    }
  };
  if (layout.vec > 1) {
    with_lanes(Constant<16 / sizeof(T)>{});
  } else {
    with_lanes(Constant<1>{});
  }
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T, class A>
bool is_aligned(const SparseProduct<T, A>& p) {
  constexpr int64_t kWide = 16 / sizeof(T);
  return is_aligned(p.x) && is_aligned(p.y) && is_aligned(p.epilogue.base) &&
         p.x_stride % kWide == 0 && p.y_stride % kWide == 0 && p.epilogue.base_stride % kWide == 0;
}

int64_t num_chunks(int64_t nnz) {
  return nnz <= kChunkEdges ? 0 : ceil_div(nnz, kChunkEdges);
}

// Assigns blocks to each product of the table; threads(entry) is the number of its threads.
template <class T, class A, class F>
unsigned lay_out_blocks(Table<T, A>& table, const F& threads) {
  for (int n = 0; n < table.count; ++n) {
    table.first_block[n + 1] = table.first_block[n] + num_blocks(threads(table.entry[n]));
  }
  return table.first_block[table.count];
}

// One launch for products of one layout, and one more where rows may be long.
template <class T, class A>
void spmm(Table<T, A>& table, Layout layout, cudaStream_t stream) {
  bool weighted = false, long_rows = false;
  for (int n = 0; n < table.count; ++n) {
    const SparseArgs<A>& a = table.entry[n].p.a;
    weighted = weighted || a.value != nullptr || a.col_scale != nullptr;
    long_rows = long_rows || table.entry[n].chunks > 0;
  }
  choose<T>(layout, [&](auto vec, auto lanes) {
    constexpr int kVec = decltype(vec)::value, kLanes = decltype(lanes)::value;
    const unsigned grid = lay_out_blocks(table, [](const Entry<T, A>& e) {
      return (e.p.a.rows + 2 * e.chunks) * e.parts * kLanes;
    });
    const auto kernel = weighted ? spmm_kernel<T, A, kVec, kLanes, true>
                                 : spmm_kernel<T, A, kVec, kLanes, false>;
    MMSSL_LAUNCH(kernel, grid, kBlock, stream, table);
  });
  if (long_rows) {
    const unsigned grid =
        lay_out_blocks(table, [](const Entry<T, A>& e) {
          return e.chunks * ceil_div(e.p.d, kWarp) * kWarp;
        });
    MMSSL_LAUNCH((join_kernel<T, A>), grid, kBlock, stream, table);
  }
}

// Products of one layout share launches, in the order of their first; there is usually one layout.
template <class T, class A>
cudaError_t spmm(std::span<const SparseProduct<T, A>> products, A* scratch, cudaStream_t stream) {
  struct Pending {
    Layout layout;
    Table<T, A> table;
  };
  std::vector<Pending> pending;
  for (const SparseProduct<T, A>& p : products) {
    const int64_t chunks = num_chunks(p.a.nnz);
    A* own = scratch;
    scratch += 2 * chunks * p.d;
    if (p.a.rows == 0 || p.d == 0) continue;
    const Layout layout = layout_of<T>(p.d, is_aligned(p));
    auto found = std::find_if(pending.begin(), pending.end(), [&](const Pending& other) {
      return other.layout == layout && other.table.count < kMaxProducts;
    });
    if (found == pending.end()) found = pending.insert(found, Pending{layout, {}});
    const int parts = int(ceil_div(p.d, int64_t(layout.vec) * layout.lanes));
    found->table.entry[found->table.count++] = Entry<T, A>{p, own, chunks, parts};
  }
  for (Pending& launch : pending) spmm(launch.table, launch.layout, stream);
  return cudaGetLastError();
}

template <class T, class A>
cudaError_t value_grad(const SparseArgs<A>& a, const T* g, const T* x, A* out, int64_t d,
                       cudaStream_t stream) {
  if (a.nnz == 0) return cudaSuccess;
  const int64_t groups = ceil_div(a.nnz, kEdgesPerGroup);
  choose<T>(layout_of<T>(d, is_aligned(x) && is_aligned(g)), [&](auto vec, auto lanes) {
    constexpr int kVec = decltype(vec)::value, kLanes = decltype(lanes)::value;
    MMSSL_LAUNCH((value_grad_kernel<T, A, kVec, kLanes>), num_blocks(groups * kLanes), kBlock, stream,
                 a, g, x, out, d);
  });
  return cudaGetLastError();
}

}  // namespace

int64_t spmm_scratch_rows(int64_t nnz) { return 2 * num_chunks(nnz); }

cudaError_t launch_spmm(std::span<const SparseProduct<float, float>> products, float* scratch,
                        cudaStream_t stream) {
  return spmm(products, scratch, stream);
}
cudaError_t launch_spmm(std::span<const SparseProduct<bf16, float>> products, float* scratch,
                        cudaStream_t stream) {
  return spmm(products, scratch, stream);
}
cudaError_t launch_spmm(std::span<const SparseProduct<double, double>> products, double* scratch,
                        cudaStream_t stream) {
  return spmm(products, scratch, stream);
}

cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const float* g, const float* x,
                                   float* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}
cudaError_t launch_spmm_value_grad(const SparseArgs<float>& a, const bf16* g, const bf16* x,
                                   float* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}
cudaError_t launch_spmm_value_grad(const SparseArgs<double>& a, const double* g, const double* x,
                                   double* out, int64_t d, cudaStream_t stream) {
  return value_grad(a, g, x, out, d, stream);
}

}  // namespace mmssl::cuda
