// The rows of a sparse product: the code that spmm.cpp compiles for each SIMD level.
#pragma once
#include <type_traits>

#include "common/simd.h"
#include "ops/propagate/spmm.h"

namespace mmssl::cpu {

template <class T, class A>
struct Spmm {
  SparseProduct<T, A> p;
  A* partial;      // (slots, d): chunk sums of the rows that are shared between tasks
  int64_t ahead;   // edges
  bool far_scale;  // whether col_scale is prefetched too
};

// How a sum becomes a row of the result: factor * (base + scale * sum), or scale * sum without base.
template <class T, class A>
struct Finish {
  A scale;
  const T* base = nullptr;
  A factor = 1;

  Finish columns_from(int64_t k) const { return {scale, base == nullptr ? base : base + k, factor}; }
  template <class V, class B>
  MMSSL_INLINE V operator()(const V& sum, const B& before) const {
    return factor * (before + scale * sum);
  }
};

template <class T, class A>
MMSSL_INLINE Finish<T, A> finish_of(const SparseProduct<T, A>& p, int64_t row) {
  const Epilogue<T, A>& e = p.epilogue;
  const A scale = p.a.row_scale == nullptr ? A(1) : p.a.row_scale[row];
  if (e.base == nullptr) return {scale};
  const A factor = e.factor == nullptr ? e.scale : e.scale * e.factor[row];
  const int64_t base_row = e.base_row == nullptr ? row : e.base_row[row];
  return {scale, e.base + base_row * e.base_stride, factor};
}

// The factors of an edge's row. The common cases have separate loops: a loop that tests for all of
// them takes a fifth more time.
enum class Weights { kOnes, kColumns, kAny };

template <Weights kWeights, class A>
MMSSL_INLINE A edge_weight(const SparseArgs<A>& a, int64_t p, int32_t c) {
  if constexpr (kWeights == Weights::kOnes) return 1;
  if constexpr (kWeights == Weights::kColumns) return a.col_scale[c];
  A weight = 1;
  if (a.value != nullptr) weight = a.value[a.edge == nullptr ? p : a.edge[p]];
  if (a.col_scale != nullptr) weight *= a.col_scale[c];
  return weight;
}

template <class A>
Weights weights_of(const SparseArgs<A>& a) {
  if (a.value != nullptr) return Weights::kAny;
  return a.col_scale == nullptr ? Weights::kOnes : Weights::kColumns;
}

MMSSL_INLINE void write(float* out, float v) { *out = v; }
MMSSL_INLINE void write(double* out, double v) { *out = v; }
MMSSL_INLINE void write(bf16* out, float v) { *out = to_bf16(v); }

// sum += weight * x, over kVecs vectors of stored numbers. bf16 goes by pairs of vectors.
template <class T, class A, int kLanes, int kVecs, Weights kWeights>
MMSSL_INLINE void add_row(Vec<A, kLanes> (&sum)[kVecs], const T* x, A weight) {
  constexpr bool kWeighted = kWeights != Weights::kOnes;
  if constexpr (std::is_same_v<T, bf16> && kVecs > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; i += 2) {
      Vec<A, kLanes> even, odd;
      load_pair<kLanes>(x + i * kLanes, even, odd);
      sum[i] += kWeighted ? weight * even : even;
      sum[i + 1] += kWeighted ? weight * odd : odd;
    }
  } else if constexpr (kLanes == 1) {
    for (int i = 0; i < kVecs; ++i) sum[i] += kWeighted ? weight * widen(x[i]) : widen(x[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) {
      const Vec<A, kLanes> v = load<A, kLanes>(x + i * kLanes);
      sum[i] += kWeighted ? weight * v : v;
    }
  }
}

template <class T, class A, int kLanes, int kVecs, class Out>
MMSSL_INLINE void store_row(Out* out, const Vec<A, kLanes> (&sum)[kVecs], const Finish<T, A>& f) {
  if constexpr (std::is_same_v<T, bf16> && kVecs > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; i += 2) {
      Vec<A, kLanes> even = f.scale * sum[i], odd = f.scale * sum[i + 1];
      if (f.base != nullptr) {
        load_pair<kLanes>(f.base + i * kLanes, even, odd);
        even = f(sum[i], even), odd = f(sum[i + 1], odd);
      }
      store_pair<kLanes>(out + i * kLanes, even, odd);
    }
  } else if constexpr (kLanes == 1) {
    for (int i = 0; i < kVecs; ++i) {
      write(out + i, f.base == nullptr ? f.scale * sum[i] : f(sum[i], widen(f.base[i])));
    }
  } else if (f.base == nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) store<A, kLanes>(out + i * kLanes, f.scale * sum[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kVecs; ++i) {
      store<A, kLanes>(out + i * kLanes, f(sum[i], load_as<A, T, kLanes>(f.base + i * kLanes)));
    }
  }
}

// sum += the edges at positions [begin, end), columns [k, k + kLanes * kVecs). Each column is summed edge
// by edge, so that all SIMD levels give the same bits.
template <class T, class A, int kLanes, int kVecs, Weights kWeights>
MMSSL_INLINE void sum_edges(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k,
                            Vec<A, kLanes> (&sum)[kVecs]) {
  const int32_t* col = s.p.a.col;
  const T* x = s.p.x + k;
  constexpr int64_t kBytes = int64_t(kLanes) * kVecs * sizeof(T);
  for (int64_t p = begin; p < end; ++p) {
    if (p + s.ahead < s.p.a.nnz) {
      const int64_t c = col[p + s.ahead];
      const char* next = reinterpret_cast<const char*>(x + c * s.p.x_stride);
#pragma GCC unroll 16
      for (int64_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(next + byte);
      if (kWeights == Weights::kColumns && s.far_scale) __builtin_prefetch(s.p.a.col_scale + c);
    }
    const A weight = edge_weight<kWeights>(s.p.a, p, col[p]);
    add_row<T, A, kLanes, kVecs, kWeights>(sum, x + col[p] * s.p.x_stride, weight);
  }
}

// Columns [k, k + kLanes * kVecs) of out, from the sum over positions [begin, end), which is kept in
// registers.
template <class T, class A, int kLanes, int kVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_columns(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k,
                              const Finish<T, A>& finish, Out* out) {
  if constexpr (std::is_same_v<T, bf16> && kVecs == 1 && kLanes > 1) {
    sum_columns<T, A, kLanes / 2, 2, kWeights>(s, begin, end, k, finish, out);
  } else {
    Vec<A, kLanes> sum[kVecs] = {};
    sum_edges<T, A, kLanes, kVecs, kWeights>(s, begin, end, k, sum);
    store_row<T, A, kLanes, kVecs>(out + k, sum, finish.columns_from(k));
  }
}

// The last d % kLanes columns: by one vector that overlaps columns already done (which get the same
// results again), or by narrower vectors where the whole row is shorter than one.
template <class T, class A, int kLanes, Weights kWeights, class Out>
MMSSL_INLINE void sum_tail(const Spmm<T, A>& s, int64_t begin, int64_t end, int64_t k,
                           const Finish<T, A>& finish, Out* out) {
  const int64_t d = s.p.d;
  if (d >= kLanes) {
    if (k + kLanes <= d) {
      sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, k, finish, out);
      k += kLanes;
    }
    if (k < d) sum_columns<T, A, kLanes, 1, kWeights>(s, begin, end, d - kLanes, finish, out);
  } else if constexpr (kLanes > 1) {
    sum_tail<T, A, kLanes / 2, kWeights>(s, begin, end, k, finish, out);
  }
}

// A row of out from the sum over positions [begin, end), widest blocks first.
template <class T, class A, int kLanes, int kMaxVecs, Weights kWeights, class Out>
MMSSL_INLINE void sum_row(const Spmm<T, A>& s, int64_t begin, int64_t end,
                          const Finish<T, A>& finish, Out* out) {
  const int64_t d = s.p.d;
  int64_t k = 0;
  for (; k + kMaxVecs * kLanes <= d; k += kMaxVecs * kLanes) {
    sum_columns<T, A, kLanes, kMaxVecs, kWeights>(s, begin, end, k, finish, out);
  }
  if constexpr (kMaxVecs > 8) {
    if (k + 8 * kLanes <= d) {
      sum_columns<T, A, kLanes, 8, kWeights>(s, begin, end, k, finish, out);
      k += 8 * kLanes;
    }
  }
  if (k + 4 * kLanes <= d) {
    sum_columns<T, A, kLanes, 4, kWeights>(s, begin, end, k, finish, out);
    k += 4 * kLanes;
  }
  if (k + 2 * kLanes <= d) {
    sum_columns<T, A, kLanes, 2, kWeights>(s, begin, end, k, finish, out);
    k += 2 * kLanes;
  }
  if (k < d) sum_tail<T, A, kLanes, kWeights>(s, begin, end, k, finish, out);
}

// Columns [0, d) of a row of y by Adam, from their gradient.
template <class A, int kLanes>
MMSSL_INLINE void update_row(const SparseProduct<A, A>& p, int64_t row, const A* grad, int64_t d) {
  const Adam<A> adam = p.epilogue.adam;
  const int64_t at = row * p.y_stride;
  int64_t k = 0;
  for (; k + kLanes <= d; k += kLanes) {
    const auto g = load<A, kLanes>(grad + k);
    auto mean = load<A, kLanes>(adam.mean + at + k), square = load<A, kLanes>(adam.square + at + k);
    mean += adam.share * (g - mean);
    square = adam.kept * square + adam.square_share * g * g;
    store<A, kLanes>(adam.mean + at + k, mean);
    store<A, kLanes>(adam.square + at + k, square);
    const auto size = square_root<A, kLanes>(square) * adam.root + adam.eps;
    store<A, kLanes>(p.y + at + k, load<A, kLanes>(p.y + at + k) - adam.rate * mean / size);
  }
  if constexpr (kLanes > 1) {
    if (k == d) return;
    SparseProduct<A, A> rest = p;
    rest.y += k, rest.epilogue.adam.mean += k, rest.epilogue.adam.square += k;
    update_row<A, 1>(rest, row, grad + k, d - k);
  }
}

// What is added to the sum of a row: nothing, the same row of base, or any row of base and perhaps the
// gradient of parameters. Registers are too few for what the others need.
enum class Ends { kNone, kBase, kAny };

// Rows [row, last) of kVecs vectors up to the first one with more than kChunkEdges edges, which is
// returned. A short row costs as much as its edges, so what is the same for all rows is found out once.
template <class T, class A, int kLanes, int kVecs, Weights kWeights, Ends kEnds>
MMSSL_INLINE int64_t run_short_rows(const Spmm<T, A>& s, int64_t row, int64_t last, T* grad) {
  const SparseArgs<A>& a = s.p.a;
  const Epilogue<T, A>& e = s.p.epilogue;
  const A one = 1;
  const A* const row_scale = a.row_scale == nullptr ? &one : a.row_scale;
  const A* const factor = e.factor == nullptr ? &one : e.factor;
  const int64_t scale_step = a.row_scale != nullptr, factor_step = e.factor != nullptr;
  int64_t first = a.rowptr[row];
  for (; row < last; ++row) {
    const int64_t end = a.rowptr[row + 1];
    if (end - first > kChunkEdges) break;
    Vec<A, kLanes> sum[kVecs] = {};
    sum_edges<T, A, kLanes, kVecs, kWeights>(s, first, end, 0, sum);
    first = end;
    Finish<T, A> finish{row_scale[row * scale_step]};
    if constexpr (kEnds != Ends::kNone) {
      const bool mapped = kEnds == Ends::kAny && e.base_row != nullptr;
      const int64_t base_row = mapped ? e.base_row[row] : row;
      finish.base = e.base + base_row * e.base_stride;
      finish.factor = e.scale * factor[row * factor_step];
      if (finish.base == nullptr) __builtin_unreachable();
    }
    const bool updates = kEnds == Ends::kAny && grad != nullptr;
    T* const y = updates ? grad : s.p.y + row * s.p.y_stride;
    store_row<T, A, kLanes, kVecs>(y, sum, finish);
    if constexpr (std::is_same_v<T, A>) {
      if (updates) update_row<A, kLanes>(s.p, row, y, kVecs * kLanes);
    }
  }
  return row;
}

}  // namespace mmssl::cpu
