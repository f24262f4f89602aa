// A group of kLanes lanes of a warp owns a row, or of a wide row kLanes * kVec columns; each lane owns
// kVec neighboring columns and gathers them with one load of 16 bytes, kInFlight edges at a time, while
// the next columns are on their way. A row with more edges than a chunk is left to the groups of the
// chunks that it spans: the edges of the whole matrix are cut into chunks, so that the host needs to
// know no row and nothing waits for the device, and a second kernel adds the sums of a row's chunks
// in a fixed order, without atomics: a warp those of a row, a block those of a very long one.
//
// A launch takes up to kMaxProducts products, passed by value in its parameters; neighboring blocks
// belong to the same product.
#include "ops/propagate/gathers.cuh"
#include "ops/propagate/kernels.cuh"

#include <algorithm>
#include <vector>

namespace mmssl::cuda {
namespace {

// Far below the 4 KB limit for a kernel's parameters, and more than a model's modalities in both
// directions.
constexpr int kMaxProducts = 16;
constexpr int kInFlight = 8;  // edges whose rows a lane gathers at a time
// Pieces of a row that one warp adds up; the warps of a block share those of a longer one.
constexpr int64_t kPiecesOfWarp = 32;

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
__device__ __forceinline__ Span find_piece(const SparseArgs<A>& a, int64_t piece, int64_t chunk) {
  const int64_t begin = piece / 2 * chunk;
  const int64_t end = begin + chunk < a.nnz ? begin + chunk : a.nnz;
  const bool at_head = piece % 2 == 0;
  const int64_t row = row_of(a.rowptr, a.rows, at_head ? begin : end - 1);
  const int64_t first = a.rowptr[row], stop = a.rowptr[row + 1];
  if (stop - first <= chunk || (!at_head && first <= begin)) return {0, 0};
  return {first > begin ? first : begin, stop < end ? stop : end};
}

template <class T, class A>
struct Entry {
  SparseProduct<T, A> p;
  A* scratch;      // (2 * chunks, d): sums of the pieces of long rows
  int64_t chunks;  // 0 where no row can be long
  int chunk;       // edges of a chunk
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
__global__ void __launch_bounds__(kBlock, sizeof(A) == 4 ? 3 : 2)
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
                              : find_piece(a, group - a.rows, e.chunk);
  if (whole_row ? span.end - span.begin > e.chunk : span.begin == span.end) return;
  const A scale = whole_row && a.row_scale != nullptr ? a.row_scale[group] : A(1);
  const char* __restrict__ x = reinterpret_cast<const char*>(e.p.x + k);
  const int stride = int(e.p.x_stride * sizeof(T));  // one multiply-add an address
  const int32_t* __restrict__ col = a.col + span.begin;
  const int count = int(span.end - span.begin);
  Pack<A, kVec> sum = {};
  int32_t ahead[kInFlight];
  const auto fetch = [&](int p) {
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      if (p + n < count) ahead[n] = col[p + n];
    }
  };
  // Adds the rows of kEdges fetched edges; without `whole` the last ones may be behind the end.
  const auto add = [&](int p, auto first, auto edges, bool whole) {
    constexpr int kFirst = decltype(first)::value, kEdges = decltype(edges)::value;
    Pack<T, kVec> row[kEdges];
    A weight[kEdges];
#pragma unroll
    for (int n = 0; n < kEdges; ++n) {
      if (!whole && p + kFirst + n >= count) continue;
      const int32_t c = ahead[kFirst + n];
      row[n] = load<T, kVec>(reinterpret_cast<const T*>(x + int64_t(c) * stride));
      if constexpr (kWeighted) weight[n] = edge_weight(a, span.begin + p + kFirst + n, c);
    }
    if (whole) fetch(p + kInFlight);
#pragma unroll
    for (int n = 0; n < kEdges; ++n) {
      if (!whole && p + kFirst + n >= count) continue;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const A value = widen(row[n].v[i]);
        sum.v[i] += kWeighted ? weight[n] * value : value;
      }
    }
  };
  int p = 0;
  fetch(0);
#pragma unroll 1
  for (; p + kInFlight <= count; p += kInFlight) {
    add(p, Constant<0>{}, Constant<kInFlight>{}, true);
  }
  if (p < count) add(p, Constant<0>{}, Constant<kInFlight / 2>{}, false);
  if (p + kInFlight / 2 < count) {
    add(p, Constant<kInFlight / 2>{}, Constant<kInFlight / 2>{}, false);
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

// The pieces [begin, end) of a row, of which the first is that of its beginning; empty for a warp whose
// chunk begins no long row.
struct Pieces {
  int64_t begin, end, first, row;
};

// Adds up pieces from `from` on, `step` of them apart, in an order that depends on their number only.
template <class A>
__device__ __forceinline__ A sum_of_pieces(const A* scratch, int64_t d, const Pieces& pieces,
                                           int64_t from, int64_t step) {
  A sum[kInFlight] = {};
  for (int64_t c = from; c < pieces.end; c += step * kInFlight) {
#pragma unroll
    for (int n = 0; n < kInFlight; ++n) {
      const int64_t at = c + n * step;
      if (at < pieces.end) sum[n] += scratch[(at == pieces.begin ? pieces.first : 2 * at) * d];
    }
  }
#pragma unroll
  for (int width = kInFlight / 2; width > 0; width /= 2) {
#pragma unroll
    for (int n = 0; n < width; ++n) sum[n] += sum[n + width];
  }
  return sum[0];
}

// A warp for every 32 columns of a chunk: where a long row begins in it, adds up that row's pieces. The
// warps of the block share very long rows.
template <class T, class A>
__global__ void __launch_bounds__(kBlock) join_kernel(const __grid_constant__ Table<T, A> table) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ Pieces of_warp[kWarps];
  __shared__ A part[kWarps][kWarp];
  const int n = product_of_block(table);
  const Entry<T, A>& e = table.entry[n];
  const SparseArgs<A>& a = e.p.a;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t task = int64_t(blockIdx.x - table.first_block[n]) * kWarps;
  const int64_t d = e.p.d, slabs = ceil_div(d, kWarp);
  const auto column = [&](int w) { return (task + w) % slabs * kWarp + lane; };
  const int64_t chunk = (task + warp) / slabs, begin = chunk * e.chunk;
  Pieces pieces{};
  if (chunk < e.chunks) {
    const int64_t end = begin + e.chunk < a.nnz ? begin + e.chunk : a.nnz;
    const int64_t row = row_of(a.rowptr, a.rows, end - 1);  // a long row that begins here gets this far
    const int64_t first = a.rowptr[row], stop = a.rowptr[row + 1];
    if (stop - first > e.chunk && first >= begin) {
      pieces = {chunk, (stop - 1) / e.chunk + 1, 2 * chunk + (first == begin ? 0 : 1), row};
    }
  }
  const auto write = [&](int64_t k, A sum) {
    const A scale = a.row_scale == nullptr ? A(1) : a.row_scale[pieces.row];
    if (k < d) write_columns(e.p, pieces.row, k, Pack<A, 1>{scale * sum});
  };
  if (lane == 0) of_warp[warp] = pieces;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    const Pieces shared = of_warp[w];
    if (shared.end - shared.begin <= kPiecesOfWarp) continue;
    part[warp][lane] = column(w) < d ? sum_of_pieces(e.scratch + column(w), d, shared,
                                                     shared.begin + warp, kWarps)
                                     : A(0);
    __syncthreads();
    if (warp == w) {
      A sum = 0;
      for (int other = 0; other < kWarps; ++other) sum += part[other][lane];
      write(column(w), sum);
    }
    __syncthreads();
  }
  const int64_t count = pieces.end - pieces.begin, k = column(warp);
  if (count == 0 || count > kPiecesOfWarp || k >= d) return;
  write(k, sum_of_pieces(e.scratch + k, d, pieces, pieces.begin, 1));
}

template <class T, class A>
bool is_aligned(const SparseProduct<T, A>& p) {
  constexpr int64_t kWide = 16 / sizeof(T);
  return is_aligned(p.x) && is_aligned(p.y) && is_aligned(p.epilogue.base) &&
         p.x_stride % kWide == 0 && p.y_stride % kWide == 0 && p.epilogue.base_stride % kWide == 0;
}

int64_t num_chunks(int64_t nnz) {
  const int64_t chunk = spmm_chunk_edges(nnz);
  return nnz <= chunk ? 0 : ceil_div(nnz, chunk);
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
    found->table.entry[found->table.count++] = 
        Entry<T, A>{p, own, chunks, int(spmm_chunk_edges(p.a.nnz)), parts};
  }
  for (Pending& launch : pending) spmm(launch.table, launch.layout, stream);
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

}  // namespace mmssl::cuda
