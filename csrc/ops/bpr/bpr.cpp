// Forward: a triple is three gathered rows, two running sums and one logarithm. Backward: the
// positions of every row in the batch are chained, so that each row of the dense gradients is
// summed in registers in the order of the batch and written once, by whichever thread takes it.
#include "ops/bpr/bpr.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "common/simd.h"

namespace mmssl::cpu {
namespace {

// Triples by which rows are prefetched.
constexpr int64_t kPrefetchTriples = 4;
// Triples and rows per task: some ten microseconds of work.
constexpr int64_t kTaskTriples = 256;
constexpr int64_t kTaskRows = 1024;

// 2 * kLanes neighboring columns: halves for float and double, even and odd ones for bf16.
template <class A, int kLanes>
struct Columns {
  Vec<A, kLanes> first, second;
};

template <class T, class A, int kLanes>
MMSSL_INLINE Columns<A, kLanes> load_columns(const T* p) {
  Columns<A, kLanes> c;
  if constexpr (std::is_same_v<T, bf16>) {
    load_pair<kLanes>(p, c.first, c.second);
  } else {
    c = {load<A, kLanes>(p), load<A, kLanes>(p + kLanes)};
  }
  return c;
}

template <class T, class A, int kLanes>
MMSSL_INLINE void store_columns(T* p, const Columns<A, kLanes>& c) {
  if constexpr (std::is_same_v<T, bf16>) {
    store_pair<kLanes>(p, c.first, c.second);
  } else {
    store<A, kLanes>(p, c.first);
    store<A, kLanes>(p + kLanes, c.second);
  }
}

template <class A, int kSums>
MMSSL_INLINE A sum_lanes(A (&lane)[kSums]) {
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

template <class T, class A>
struct Forward {
  BprArgs<T> a;
  A* loss;     // (B), per triple
  A* squares;  // (B), per triple
  A* slope;    // (B)
};

// Margin and squares of one triple, in 128 bytes of running sums whatever the width of a vector, so
// that all SIMD levels add in the same order.
template <class T, class A, int kLanes>
MMSSL_INLINE void triple(const Forward<T, A>& s, int64_t b) {
  constexpr int kSums = 128 / sizeof(A), kBlocks = kSums / 2 / kLanes;
  const int64_t d = s.a.d;
  const T* u = s.a.user_emb + s.a.user[b] * d;
  const T* p = s.a.item_emb + s.a.pos[b] * d;
  const T* n = s.a.item_emb + s.a.neg[b] * d;
  Columns<A, kLanes> margin[kBlocks] = {}, squares[kBlocks] = {};
  int64_t k = 0;
  for (; k + kSums <= d; k += kSums) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlocks; ++i) {
      const auto user = load_columns<T, A, kLanes>(u + k + i * 2 * kLanes);
      const auto pos = load_columns<T, A, kLanes>(p + k + i * 2 * kLanes);
      const auto neg = load_columns<T, A, kLanes>(n + k + i * 2 * kLanes);
      margin[i].first += user.first * (pos.first - neg.first);
      margin[i].second += user.second * (pos.second - neg.second);
      squares[i].first += user.first * user.first + pos.first * pos.first + neg.first * neg.first;
      squares[i].second +=
          user.second * user.second + pos.second * pos.second + neg.second * neg.second;
    }
  }
  // Back in the order of the columns, which for bf16 are not the order of the lanes.
  A margin_lane[kSums], squares_lane[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kBlocks; ++i) {
    A lanes[4][kLanes];
    __builtin_memcpy(lanes[0], &margin[i].first, sizeof(lanes[0]));
    __builtin_memcpy(lanes[1], &margin[i].second, sizeof(lanes[0]));
    __builtin_memcpy(lanes[2], &squares[i].first, sizeof(lanes[0]));
    __builtin_memcpy(lanes[3], &squares[i].second, sizeof(lanes[0]));
    for (int j = 0; j < 2 * kLanes; ++j) {
      const bool pairs = std::is_same_v<T, bf16>;
      const int half = pairs ? j % 2 : j / kLanes, lane = pairs ? j / 2 : j % kLanes;
      margin_lane[i * 2 * kLanes + j] = lanes[half][lane];
      squares_lane[i * 2 * kLanes + j] = lanes[2 + half][lane];
    }
  }
  for (int64_t i = 0; k < d; ++k, ++i) {
    const A user = widen(u[k]), pos = widen(p[k]), neg = widen(n[k]);
    margin_lane[i] += user * (pos - neg);
    squares_lane[i] += user * user + pos * pos + neg * neg;
  }
  const A m = sum_lanes<A, kSums>(margin_lane);
  const A e = std::exp(-std::fabs(m));  // never overflows; log1p keeps its precision
  s.loss[b] = std::log1p(e) + (m < 0 ? -m : A(0));
  s.slope[b] = (m < 0 ? A(1) : e) / (1 + e);
  s.squares[b] = sum_lanes<A, kSums>(squares_lane);
}

template <class T>
MMSSL_INLINE void prefetch(const T* row, int64_t d) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < d * int64_t(sizeof(T)) && byte < 512; byte += 64) {
    __builtin_prefetch(p + byte);
  }
}

template <class T, class A, int kLanes>
MMSSL_INLINE void run_forward(const Forward<T, A>& s, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    if (const int64_t next = b + kPrefetchTriples; next < end) {
      prefetch(s.a.user_emb + s.a.user[next] * s.a.d, s.a.d);
      prefetch(s.a.item_emb + s.a.pos[next] * s.a.d, s.a.d);
      prefetch(s.a.item_emb + s.a.neg[next] * s.a.d, s.a.d);
    }
    triple<T, A, kLanes>(s, b);
  }
}

// The positions of every row in the batch, in ascending order.
struct Chains {
  Chains(int64_t rows, int64_t positions) : head(rows, -1), next(positions) {}
  void add(int64_t row, int64_t position) {  // from the last position to the first
    next[position] = head[row];
    head[row] = int32_t(position);
  }
  std::vector<int32_t> head;  // (rows), -1: the row is not in the batch
  std::vector<int32_t> next;  // (positions), -1: the last one
};

// For users position b is triple b. For items position b is the positive of triple b, B + b its
// negative.
template <class T, class A>
struct Backward {
  BprArgs<T> a;
  const A* weight;  // (B): the loss's gradient by the margin
  A decay;          // twice the gradient by the squares
  const Chains* chains;
  T* grad;  // (rows, D)
  bool items;
};

// Columns [k, k + 2 * kLanes) of the gradient of one row.
template <class T, class A, int kLanes>
MMSSL_INLINE void sum_columns(const Backward<T, A>& s, int64_t row, int64_t k) {
  const int64_t d = s.a.d, batch = s.a.batch;
  Columns<A, kLanes> sum = {};
  int64_t count = 0;
  for (int64_t at = s.chains->head[row]; at >= 0; at = s.chains->next[at], ++count) {
    if (s.items) {
      const int64_t b = at < batch ? at : at - batch;
      const A weight = at < batch ? s.weight[b] : -s.weight[b];
      const auto user = load_columns<T, A, kLanes>(s.a.user_emb + s.a.user[b] * d + k);
      sum.first += weight * user.first;
      sum.second += weight * user.second;
    } else {
      const A weight = s.weight[at];
      const auto pos = load_columns<T, A, kLanes>(s.a.item_emb + s.a.pos[at] * d + k);
      const auto neg = load_columns<T, A, kLanes>(s.a.item_emb + s.a.neg[at] * d + k);
      sum.first += weight * (pos.first - neg.first);
      sum.second += weight * (pos.second - neg.second);
    }
  }
  if (s.decay != 0) {
    const A factor = s.decay * A(count);
    const T* own = (s.items ? s.a.item_emb : s.a.user_emb) + row * d + k;
    const auto v = load_columns<T, A, kLanes>(own);
    sum.first += factor * v.first;
    sum.second += factor * v.second;
  }
  store_columns<T, A, kLanes>(s.grad + row * d + k, sum);
}

// The last column of an odd number of them.
template <class T, class A>
MMSSL_INLINE void sum_column(const Backward<T, A>& s, int64_t row, int64_t k) {
  const int64_t d = s.a.d, batch = s.a.batch;
  A sum = 0;
  int64_t count = 0;
  for (int64_t at = s.chains->head[row]; at >= 0; at = s.chains->next[at], ++count) {
    const int64_t b = at < batch ? at : at - batch;
    const A weight = at < batch ? s.weight[b] : -s.weight[b];
    sum += s.items ? weight * widen(s.a.user_emb[s.a.user[b] * d + k])
                   : weight * (widen(s.a.item_emb[s.a.pos[b] * d + k]) -
                               widen(s.a.item_emb[s.a.neg[b] * d + k]));
  }
  if (s.decay != 0) {
    sum += s.decay * A(count) * widen((s.items ? s.a.item_emb : s.a.user_emb)[row * d + k]);
  }
  narrow(sum, s.grad[row * d + k]);
}

template <class T, class A, int kLanes>
MMSSL_INLINE void sum_row(const Backward<T, A>& s, int64_t row, int64_t k) {
  for (; k + 2 * kLanes <= s.a.d; k += 2 * kLanes) sum_columns<T, A, kLanes>(s, row, k);
  if constexpr (kLanes > 1) {
    if (k < s.a.d) sum_row<T, A, kLanes / 2>(s, row, k);
  } else {
    if (k < s.a.d) sum_column(s, row, k);
  }
}

template <class T, class A, int kLanes>
MMSSL_INLINE void run_backward(const Backward<T, A>& s, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (s.chains->head[row] < 0) {
      __builtin_memset(s.grad + row * s.a.d, 0, s.a.d * sizeof(T));
    } else {
      sum_row<T, A, kLanes>(s, row, 0);
    }
  }
}

// One entry point per level and job.
#define MMSSL_ENTRY(level, target, bytes)                                             \
  template <class T, class A>                                                         \
  target void forward_##level(const Forward<T, A>& s, int64_t begin, int64_t end) {   \
    run_forward<T, A, bytes / sizeof(A)>(s, begin, end);                              \
  }                                                                                   \
  template <class T, class A>                                                         \
  target void backward_##level(const Backward<T, A>& s, int64_t begin, int64_t end) { \
    run_backward<T, A, bytes / sizeof(A)>(s, begin, end);                             \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

int64_t num_tasks(int64_t count, int64_t per_task) { return (count + per_task - 1) / per_task; }

}  // namespace

template <class T, class A>
void bpr_forward(const BprArgs<T>& a, A* loss, A* squares, A* slope, const Parallel& pool) {
  std::vector<A> terms(2 * a.batch);
  const Forward<T, A> s{a, terms.data(), terms.data() + a.batch, slope};
  const auto& task = at_level(forward_default<T, A>, forward_avx2<T, A>, forward_avx512<T, A>);
  for_each_task(pool, num_tasks(a.batch, kTaskTriples), [&](int64_t t) {
    task(s, t * kTaskTriples, std::min(a.batch, (t + 1) * kTaskTriples));
  });
  double loss_sum = 0, squares_sum = 0;
  for (int64_t b = 0; b < a.batch; ++b) loss_sum += s.loss[b], squares_sum += s.squares[b];
  *loss = A(loss_sum / double(a.batch));  // NaN for an empty batch, as a mean is
  *squares = A(squares_sum);
}

template <class T, class A>
void bpr_backward(const BprArgs<T>& a, A grad_loss, A grad_squares, const A* slope, T* grad_user,
                  T* grad_item, const Parallel& pool) {
  if (a.d == 0) return;
  Chains users(a.users, a.batch), items(a.items, 2 * a.batch);
  for (int64_t b = a.batch - 1; b >= 0; --b) users.add(a.user[b], b);
  for (int64_t b = a.batch - 1; b >= 0; --b) items.add(a.neg[b], a.batch + b);
  for (int64_t b = a.batch - 1; b >= 0; --b) items.add(a.pos[b], b);
  std::vector<A> weight(a.batch);
  const A scale = -grad_loss / A(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) weight[b] = scale * slope[b];
  const Backward<T, A> by_user{a, weight.data(), 2 * grad_squares, &users, grad_user, false};
  const Backward<T, A> by_item{a, weight.data(), 2 * grad_squares, &items, grad_item, true};
  const auto& task = at_level(backward_default<T, A>, backward_avx2<T, A>, backward_avx512<T, A>);
  const int64_t user_tasks = num_tasks(a.users, kTaskRows);
  for_each_task(pool, user_tasks + num_tasks(a.items, kTaskRows), [&](int64_t t) {
    const bool is_user = t < user_tasks;
    const int64_t begin = (is_user ? t : t - user_tasks) * kTaskRows;
    task(is_user ? by_user : by_item, begin,
         std::min(is_user ? a.users : a.items, begin + kTaskRows));
  });
}

#define MMSSL_BPR(T, A)                                                                        \
  template void bpr_forward<T, A>(const BprArgs<T>&, A*, A*, A*, const Parallel&);             \
  template void bpr_backward<T, A>(const BprArgs<T>&, A, A, const A*, T*, T*, const Parallel&);
MMSSL_BPR(float, float)
MMSSL_BPR(bf16, float)
MMSSL_BPR(double, double)
#undef MMSSL_BPR

}  // namespace mmssl::cpu
