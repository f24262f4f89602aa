#include "cpu/view_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dot.h"

namespace mmssl::cpu {
namespace {

constexpr int64_t kTaskNodes = 256;  // some hundred microseconds of work

// y += a * x
template <class A, int kLanes>
MMSSL_INLINE void add_scaled(A* y, A a, const A* x, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    store<A, kLanes>(y + k, load<A, kLanes>(y + k) + a * load<A, kLanes>(x + k));
  }
  for (; k < n; ++k) y[k] += a * x[k];
}

template <class T, class A>
MMSSL_INLINE void read(const T* from, A* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) to[k] = widen(from[k]);
}
MMSSL_INLINE float narrow(float v, float) { return v; }
MMSSL_INLINE double narrow(double v, double) { return v; }
MMSSL_INLINE bf16 narrow(float v, bf16) { return to_bf16(v); }
template <class T, class A>
MMSSL_INLINE void write(const A* from, T* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) to[k] = narrow(from[k], T{});
}

// One node's operands in A, its attention and room for gradients; one per task.
template <class A>
struct Node {
  explicit Node(const ViewAttentionSize& s)
      : rows(s.views * s.dim),
        numbers(6 * rows + 2 * s.heads * s.dim + (s.views + 2) * s.views * s.heads) {
    A* at = numbers.data();
    for (A** part : {&query, &key, &view, &grad_query, &grad_key, &grad_view}) {
      *part = at;
      at += rows;
    }
    out = at;
    grad = out + s.heads * s.dim;
    share = grad + s.heads * s.dim;
    weight = share + s.views * s.views * s.heads;
    grad_weight = weight + s.views * s.heads;
  }
  int64_t rows;
  std::vector<A> numbers;
  A *query, *key, *view, *grad_query, *grad_key, *grad_view;  // (M, D)
  A *out, *grad;                                              // (H, D)
  A *share;                                                   // (H, M queries, M) p
  A *weight, *grad_weight;                                    // (H, M)
};

template <class T, class A>
struct Job {
  ViewAttentionSize size;
  const T *grad, *query, *key, *view;  // grad is null in the forward
  T *out, *grad_query, *grad_key, *grad_view;
};

template <class T, class A>
MMSSL_INLINE void read_views(const Job<T, A>& j, int64_t n, const T* from, A* to) {
  for (int64_t m = 0; m < j.size.views; ++m) {
    read(from + (m * j.size.nodes + n) * j.size.dim, to + m * j.size.dim, j.size.dim);
  }
}
template <class T, class A>
MMSSL_INLINE void write_views(const Job<T, A>& j, int64_t n, const A* from, T* to) {
  for (int64_t m = 0; m < j.size.views; ++m) {
    write(from + m * j.size.dim, to + (m * j.size.nodes + n) * j.size.dim, j.size.dim);
  }
}

template <class A, int kLanes>
MMSSL_INLINE void weigh(const ViewAttentionSize& s, Node<A>& node) {
  const int64_t m = s.views, d = s.dim, width = s.dim / s.heads;
  const A scale = A(1) / std::sqrt(A(width));
  std::fill(node.weight, node.weight + s.heads * m, A(0));
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t a = 0; a < m; ++a) {
      A* p = node.share + (h * m + a) * m;
      A largest = -INFINITY, sum = 0;
      for (int64_t b = 0; b < m; ++b) {
        const int64_t at = h * width;
        p[b] = scale * dot<A, A, kLanes>(node.query + a * d + at, node.key + b * d + at, width);
        largest = std::max(largest, p[b]);
      }
      for (int64_t b = 0; b < m; ++b) sum += p[b] = std::exp(p[b] - largest);
      for (int64_t b = 0; b < m; ++b) {
        p[b] /= sum;
        node.weight[h * m + b] += p[b] / A(m);
      }
    }
  }
}

template <class T, class A, int kLanes>
MMSSL_INLINE void forward(const Job<T, A>& j, int64_t begin, int64_t end) {
  const ViewAttentionSize& s = j.size;
  Node<A> node(s);
  for (int64_t n = begin; n < end; ++n) {
    read_views(j, n, j.query, node.query);
    read_views(j, n, j.key, node.key);
    read_views(j, n, j.view, node.view);
    weigh<A, kLanes>(s, node);
    std::fill(node.out, node.out + s.heads * s.dim, A(0));
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t b = 0; b < s.views; ++b) {
        add_scaled<A, kLanes>(node.out + h * s.dim, node.weight[h * s.views + b],
                              node.view + b * s.dim, s.dim);
      }
    }
    write(node.out, j.out + n * s.heads * s.dim, s.heads * s.dim);
  }
}

template <class T, class A, int kLanes>
MMSSL_INLINE void backward(const Job<T, A>& j, int64_t begin, int64_t end) {
  const ViewAttentionSize& s = j.size;
  const int64_t m = s.views, d = s.dim, width = s.dim / s.heads;
  const A scale = A(1) / std::sqrt(A(width));
  Node<A> node(s);
  for (int64_t n = begin; n < end; ++n) {
    read_views(j, n, j.query, node.query);
    read_views(j, n, j.key, node.key);
    read_views(j, n, j.view, node.view);
    read(j.grad + n * s.heads * d, node.grad, s.heads * d);
    weigh<A, kLanes>(s, node);
    std::fill(node.grad_query, node.grad_view + node.rows, A(0));
    for (int64_t h = 0; h < s.heads; ++h) {
      const A* g = node.grad + h * d;
      A* grad_weight = node.grad_weight + h * m;
      for (int64_t b = 0; b < m; ++b) {
        grad_weight[b] = dot<A, A, kLanes>(g, node.view + b * d, d);
        add_scaled<A, kLanes>(node.grad_view + b * d, node.weight[h * m + b], g, d);
      }
      for (int64_t a = 0; a < m; ++a) {
        const A* p = node.share + (h * m + a) * m;
        A mean = 0;
        for (int64_t b = 0; b < m; ++b) mean += p[b] * grad_weight[b];
        for (int64_t b = 0; b < m; ++b) {
          const A grad_score = scale * p[b] * (grad_weight[b] - mean) / A(m);
          const int64_t q = a * d + h * width, k = b * d + h * width;
          add_scaled<A, kLanes>(node.grad_query + q, grad_score, node.key + k, width);
          add_scaled<A, kLanes>(node.grad_key + k, grad_score, node.query + q, width);
        }
      }
    }
    write_views(j, n, node.grad_query, j.grad_query);
    write_views(j, n, node.grad_key, j.grad_key);
    write_views(j, n, node.grad_view, j.grad_view);
  }
}

#define MMSSL_ENTRY(level, target, bytes)                                                       \
  template <class T, class A>                                                                   \
  target void task_##level(const Job<T, A>& job, int64_t begin, int64_t end) {                  \
    if (job.grad == nullptr) return forward<T, A, bytes / sizeof(A)>(job, begin, end);          \
    backward<T, A, bytes / sizeof(A)>(job, begin, end);                                         \
  }
MMSSL_ENTRY(default, , 16)
MMSSL_ENTRY(avx2, MMSSL_TARGET_AVX2, 32)
MMSSL_ENTRY(avx512, MMSSL_TARGET_AVX512, 64)
#undef MMSSL_ENTRY

template <class T, class A>
void launch(const Job<T, A>& job, const Parallel& pool) {
  const auto& task = at_level(task_default<T, A>, task_avx2<T, A>, task_avx512<T, A>);
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
