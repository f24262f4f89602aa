#include "ops/view_attention/view_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "common/dot.h"
#include "common/exp2.h"

namespace mmssl::cpu {
namespace {

constexpr int64_t kTaskNodes = 256;  // some hundred microseconds of work
// Nodes that go through each stage together: enough that a stage doesn't wait for the stores of the
// previous one, few enough that their rows and those of the next block, which are prefetched
// meanwhile, fit in the first-level cache.
constexpr int64_t kBlockNodes = 2;

template <class T, class A>
struct Job {
  ViewAttentionSize size;
  const T *grad, *query, *key, *view;  // grad is null in the forward
  T *out, *grad_query, *grad_key, *grad_view;
};

// Rows of one node in A: those of the tensor itself, or a copy where it is stored in bf16.
template <class T, class A>
struct Rows {
  const A* first = nullptr;
  int64_t stride = 0;
  std::vector<A> copy;

  MMSSL_INLINE void read(const T* from, int64_t count, int64_t step, int64_t d) {
    if constexpr (std::is_same_v<T, A>) {
      first = from, stride = step;
    } else {
      copy.resize(count * d);
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = 0; k < d; ++k) copy[r * d + k] = widen(from[r * step + k]);
      }
      first = copy.data(), stride = d;
    }
  }
  MMSSL_INLINE const A* operator[](int64_t row) const { return first + row * stride; }
};

// to[k] = f(k), first in vectors and then in single numbers; f's second argument is the number of
// lanes.
template <class T, class A, int kLanes, class F>
MMSSL_INLINE void fill_row(T* to, int64_t d, const F& f) {
  int64_t k = 0;
  for (; k + kLanes <= d; k += kLanes) {
    store_as<A, T, kLanes>(to + k, f(k, std::integral_constant<int, kLanes>{}));
  }
  for (; k < d; ++k) store_as<A, T, 1>(to + k, f(k, std::integral_constant<int, 1>{}));
}

// sum_i factor[i step] * row(i)[k .. k + kWidth)
template <class A, int kWidth, class Row>
MMSSL_INLINE Vec<A, kWidth> mix(int64_t count, const A* factor, int64_t step, int64_t k,
                                const Row& row) {
  Vec<A, kWidth> sum = factor[0] * load<A, kWidth>(row(0) + k);
  for (int64_t i = 1; i < count; ++i) sum += factor[i * step] * load<A, kWidth>(row(i) + k);
  return sum;
}

// The stages of attention for a block of nodes. kViews is M and kWidth D / H, or 0 where it is any.
template <class T, class A, int kLanes, int kViews, int kWidth>
struct Block {
  const Job<T, A>& job;
  const int64_t heads;
  Rows<T, A> query[kBlockNodes], key[kBlockNodes], view[kBlockNodes], grad[kBlockNodes];
  // By node: p (H, M queries, M), which the gradients of the scores follow; w and its gradient (H,
  // M).
  const int64_t shares, weights;
  std::vector<A> share, weight, grad_weight;
  std::vector<A> partial;  // of a node's dot products, a vector each

  MMSSL_INLINE explicit Block(const Job<T, A>& j)
      : job(j), heads(j.size.heads), shares(heads * m() * m()), weights(heads * m()),
        share(padded(kBlockNodes * shares)), weight(kBlockNodes * weights),
        grad_weight(padded(kBlockNodes * weights)), partial(kLanes * padded(shares)) {}

  MMSSL_INLINE int64_t m() const { return kViews != 0 ? kViews : job.size.views; }
  MMSSL_INLINE int64_t d() const { return kWidth != 0 ? kWidth * heads : job.size.dim; }
  MMSSL_INLINE int64_t width() const { return kWidth != 0 ? kWidth : job.size.dim / heads; }

  static int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes + kLanes; }

  // out[i] = the sum of partial[i]; up to kLanes - 1 numbers more are written.
  MMSSL_INLINE void add_up(int64_t count, A* out) {
    for (int64_t first = 0; first < count; first += kLanes) {
      Vec<A, kLanes> v[kLanes];
      for (int i = 0; i < kLanes; ++i) v[i] = load<A, kLanes>(&partial[(first + i) * kLanes]);
      store<A, kLanes>(out + first, sums_of_lanes<A, kLanes>(v));
    }
  }

  MMSSL_INLINE void read(int64_t first, int64_t count) {
    const int64_t m = this->m(), d = this->d(), step = job.size.nodes * d;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (first + i) * d;
      query[i].read(job.query + at, m, step, d);
      key[i].read(job.key + at, m, step, d);
      view[i].read(job.view + at, m, step, d);
      if (job.grad != nullptr) grad[i].read(job.grad + at * heads, heads, d, d);
    }
  }

  // Prefetches the rows of the next block, some at each stage: all at once are more than the
  // processor can track.
  MMSSL_INLINE void fetch(const T* from, int64_t rows, int64_t first, int64_t row_size) {
    const int64_t count = std::min(kBlockNodes, job.size.nodes - first);
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = from + (r * job.size.nodes + first) * row_size;
      for (int64_t k = 0; k < count * row_size; k += 64 / sizeof(T)) __builtin_prefetch(row + k);
    }
  }

  // share and weight
  MMSSL_INLINE void weigh(int64_t count) {
    const int64_t m = this->m(), width = this->width();
    for (int64_t i = 0; i < count; ++i) {
      A* p = partial.data();
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t a = 0; a < m; ++a) {
          for (int64_t b = 0; b < m; ++b) {
            const A *q = query[i][a] + h * width, *k = key[i][b] + h * width;
            store<A, kLanes>(p, dot_lanes<A, kLanes>(q, k, width));
            p += kLanes;
          }
        }
      }
      add_up(shares, share.data() + i * shares);
    }
    // exp(x) as 2^(x / log 2), the largest of a softmax subtracted
    const A scale = A(1.4426950408889634) / std::sqrt(A(width));
    const int64_t all = count * shares;
    for (int64_t s = 0; s < all; s += m) {
      A largest = share[s];
      for (int64_t b = 1; b < m; ++b) largest = std::max(largest, share[s + b]);
      for (int64_t b = 0; b < m; ++b) share[s + b] = scale * (share[s + b] - largest);
    }
    const Exp2<A, kLanes> exp2;
    const Vec<A, kLanes> lowest = Vec<A, kLanes>{} + A(sizeof(A) == 4 ? -126 : -1022);
    for (int64_t s = 0; s < all; s += kLanes) {
      const Vec<A, kLanes> v = load<A, kLanes>(share.data() + s);
      store<A, kLanes>(share.data() + s, exp2(v < lowest ? lowest : v));
    }
    const A each = A(1) / A(m);
    for (int64_t g = 0; g < count * heads; ++g) {
      A* w = weight.data() + g * m;
      for (int64_t b = 0; b < m; ++b) w[b] = 0;
      for (int64_t a = 0; a < m; ++a) {
        A* p = share.data() + (g * m + a) * m;
        A sum = 0;
        for (int64_t b = 0; b < m; ++b) sum += p[b];
        const A inverse = A(1) / sum;
        for (int64_t b = 0; b < m; ++b) w[b] += each * (p[b] *= inverse);
      }
    }
  }

  MMSSL_INLINE void forward(int64_t first, int64_t count) {
    const int64_t m = this->m(), d = this->d();
    read(first, count);
    fetch(job.query, m, first + count, d);
    fetch(job.key, m, first + count, d);
    weigh(count);
    fetch(job.view, m, first + count, d);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        const A* w = weight.data() + i * weights + h * m;
        fill_row<T, A, kLanes>(job.out + ((first + i) * heads + h) * d, d, [&](int64_t k, auto n) {
          return mix<A, n>(m, w, 1, k, [&](int64_t b) { return view[i][b]; });
        });
      }
    }
  }

  // The gradients of the weights, and in place of share those of the scores.
  MMSSL_INLINE void through_softmax(int64_t count) {
    const int64_t m = this->m(), d = this->d();
    for (int64_t i = 0; i < count; ++i) {
      A* p = partial.data();
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t b = 0; b < m; ++b, p += kLanes) {
          store<A, kLanes>(p, dot_lanes<A, kLanes>(grad[i][h], view[i][b], d));
        }
      }
      add_up(weights, grad_weight.data() + i * weights);
    }
    const A scale = A(1) / (std::sqrt(A(width())) * A(m));
    for (int64_t g = 0; g < count * heads; ++g) {
      const A* to = grad_weight.data() + g * m;
      for (int64_t a = 0; a < m; ++a) {
        A* p = share.data() + (g * m + a) * m;
        A mean = 0;
        for (int64_t b = 0; b < m; ++b) mean += p[b] * to[b];
        for (int64_t b = 0; b < m; ++b) p[b] = scale * p[b] * (to[b] - mean);
      }
    }
  }

  MMSSL_INLINE void backward(int64_t first, int64_t count) {
    const int64_t m = this->m(), d = this->d(), width = this->width();
    read(first, count);
    fetch(job.query, m, first + count, d);
    fetch(job.key, m, first + count, d);
    weigh(count);
    fetch(job.view, m, first + count, d);
    through_softmax(count);
    fetch(job.grad, 1, first + count, heads * d);
    const int64_t step = job.size.nodes * d;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (first + i) * d;
      for (int64_t a = 0; a < m; ++a) {
        const A* w = weight.data() + i * weights + a;
        fill_row<T, A, kLanes>(job.grad_view + at + a * step, d, [&](int64_t k, auto n) {
          return mix<A, n>(heads, w, m, k, [&](int64_t h) { return grad[i][h]; });
        });
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t part = h * width, to = at + a * step + part;
          const A* p = share.data() + i * shares + h * m * m;
          fill_row<T, A, kLanes>(job.grad_query + to, width, [&](int64_t k, auto n) {
            return mix<A, n>(m, p + a * m, 1, k, [&](int64_t b) { return key[i][b] + part; });
          });
          fill_row<T, A, kLanes>(job.grad_key + to, width, [&](int64_t k, auto n) {
            return mix<A, n>(m, p + a, m, k, [&](int64_t b) { return query[i][b] + part; });
          });
        }
      }
    }
  }
};

template <class T, class A, int kLanes, int kViews, int kWidth>
MMSSL_INLINE void run_blocks(const Job<T, A>& job, int64_t begin, int64_t end) {
  Block<T, A, kLanes, kViews, kWidth> block(job);
  for (int64_t n = begin; n < end; n += kBlockNodes) {
    const int64_t count = std::min(kBlockNodes, end - n);
    job.grad == nullptr ? block.forward(n, count) : block.backward(n, count);
  }
}

#define MMSSL_ENTRY(level, target, bytes)                                       \
  template <class T, class A, int kViews, int kWidth>                           \
  target void blocks_##level(const Job<T, A>& job, int64_t begin, int64_t end) { \
    run_blocks<T, A, bytes / sizeof(A), kViews, kWidth>(job, begin, end);       \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

template <class T, class A, int kViews, int kWidth>
auto task_for() {
  return at_level(blocks_default<T, A, kViews, kWidth>, blocks_avx2<T, A, kViews, kWidth>,
                  blocks_avx512<T, A, kViews, kWidth>);
}

// Two or three modalities and heads of 16 features are what the model has; their loops are
// unrolled.
template <class T, class A>
auto task_for(const ViewAttentionSize& s) {
  if (s.dim / s.heads == 16 && s.views == 2) return task_for<T, A, 2, 16>();
  if (s.dim / s.heads == 16 && s.views == 3) return task_for<T, A, 3, 16>();
  return task_for<T, A, 0, 0>();
}

template <class T, class A>
void launch(const Job<T, A>& job, const Parallel& pool) {
  if (job.size.views == 0) {  // an empty sum
    if (job.grad == nullptr) std::fill_n(job.out, job.size.nodes * job.size.heads * job.size.dim, T{});
    return;
  }
  const auto task = task_for<T, A>(job.size);
  for_each_task(pool, (job.size.nodes + kTaskNodes - 1) / kTaskNodes, [&](int64_t t) {
    task(job, t * kTaskNodes, std::min((t + 1) * kTaskNodes, job.size.nodes));
  });
}

}  // namespace

template <class T, class A>
void view_attention(const ViewAttentionSize& size, const T* query, const T* key, const T* view,
                    T* out, const Parallel& pool) {
  launch<T, A>({size, nullptr, query, key, view, out, nullptr, nullptr, nullptr}, pool);
}

template <class T, class A>
void view_attention_backward(const ViewAttentionSize& size, const T* grad, const T* query,
                             const T* key, const T* view, T* grad_query, T* grad_key, T* grad_view,
                             const Parallel& pool) {
  launch<T, A>({size, grad, query, key, view, nullptr, grad_query, grad_key, grad_view}, pool);
}

#define MMSSL_INSTANTIATE(T, A)                                                                  \
  template void view_attention<T, A>(const ViewAttentionSize&, const T*, const T*, const T*, T*, \
                                     const Parallel&);                                           \
  template void view_attention_backward<T, A>(const ViewAttentionSize&, const T*, const T*,      \
                                              const T*, const T*, T*, T*, T*, const Parallel&);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(double, double)
MMSSL_INSTANTIATE(bf16, float)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cpu
