#include "ops/topk/topk.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "common/buffer.h"
#include "gemm/register_tile.h"
#include "ops/topk/select.h"

namespace mmssl::cpu {
namespace {

// Users of a task: enough to make it worthwhile to load a panel of items into the first-level
// cache.
constexpr int64_t kTaskRows = 32;
// Panels of items that are packed at a time.
constexpr int64_t kPackPanels = 16;
// Minimum number of panels per thread where few users are ranked and threads share the items
// instead.
constexpr int64_t kMinRangePanels = 64;
// Maximum number of candidates that are ranked by counting, whose cost grows with the square.
constexpr int64_t kFew = 160;

// The train items of a user that have not been passed yet, ascending.
struct Excluded {
  const int32_t *next, *end;
};

// Some users against the items [begin, end).
template <class A>
struct Ranking {
  const A* users;  // tiles of kRows rows, transposed: [tile][d][kRows]
  const A* items;  // panels of kPanel rows, transposed: [panel][d][kPanel]
  int64_t begin, end;  // begin at a panel, end at another or the last item
  int64_t rows, d, k, capacity;
  Candidates<A>* candidates;  // (rows)
  Excluded* excluded;         // (rows)
};

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Appends the scores that exceed the threshold, of one row of kPanel scores for the items from j
// on.
template <class S, class L>
MMSSL_INLINE void append(const Ranking<typename S::A>& t, int64_t row, int64_t j,
                         typename S::A* score, const int32_t* item) {
  using A = typename S::A;
  Excluded& excluded = t.excluded[row];
  for (; excluded.next != excluded.end && *excluded.next < j + S::kPanel; ++excluded.next) {
    if (*excluded.next >= j) score[*excluded.next - j] = -std::numeric_limits<A>::infinity();
  }
  Candidates<A>& c = t.candidates[row];
  const auto threshold = typename S::V{} + c.threshold;
  uint32_t bits[S::kVecs], any = 0;
#pragma GCC unroll 4
  for (int v = 0; v < S::kVecs; ++v) {
    bits[v] = greater_bits<A, S::kLanes>(load<A, S::kLanes>(score + v * S::kLanes), threshold);
    const int64_t left = t.end - j - v * S::kLanes;
    if (left < S::kLanes) bits[v] &= left <= 0 ? 0 : (1u << left) - 1;
    any |= bits[v];
  }
  if (any == 0) return;
  if (c.count + S::kPanel > t.capacity) cut<L>(c, t.k, t.k / 8);
#pragma GCC unroll 4
  for (int v = 0; v < S::kVecs; ++v) {
    compress<L>(score + v * S::kLanes, bits[v], c.score + c.count);
    compress<L>(item + v * S::kLanes, bits[v], c.item + c.count);
    c.count += std::popcount(bits[v]);
  }
}

template <class S, class L>
MMSSL_INLINE void rank(const Ranking<typename S::A>& t) {
  using A = typename S::A;
  constexpr int R = S::kRows, P = S::kPanel;
  alignas(64) A score[R * P];
  alignas(64) int32_t item[P];
  for (int64_t j = t.begin; j < t.end; j += P) {
    for (int n = 0; n < P; ++n) item[n] = int32_t(j + n);
    for (int64_t i = 0; i < t.rows; i += R) {
      const A *user = t.users + i * t.d, *panel = t.items + (j - t.begin) * t.d;
      const int64_t rows = std::min<int64_t>(R, t.rows - i);
      if (rows == 1) {
        multiply<S, 1, S::kVecs, false>(user, 1, R, panel, P, t.d, score, P);
      } else {
        multiply<S, R, S::kVecs, false>(user, 1, R, panel, P, t.d, score, P);
      }
      for (int64_t r = 0; r < rows; ++r) append<S, L>(t, i + r, j, score + r * P, item);
    }
  }
}

// Cuts a user's candidates to k and sorts them.
template <class L>
MMSSL_INLINE void finish(Candidates<typename L::A>& c, int64_t k, char* scratch,
                         typename L::A* score, int64_t* item) {
  using A = typename L::A;
  if (c.count > k) cut<L>(c, k, 0);
  if (c.count <= kFew) {
    sort_few<L>(c, score, item);
  } else {
    auto* keys = reinterpret_cast<KeyBits<A>*>(scratch);
    sort_many<A>(c, keys, reinterpret_cast<int32_t*>(keys + 2 * c.count), score, item);
  }
}

// Transposes up to kPanel rows of x (count, d) into a panel (d, kPanel), zero-padded.
template <class T, class A, int L, int kPanel>
MMSSL_INLINE void pack(const T* x, int64_t count, int64_t d, A* panel) {
  for (int64_t n = 0; n < kPanel; n += L) {
    int64_t k = 0;
    for (; k + L <= d; k += L) {
      Vec<A, L> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        block[i] = n + i < count ? load_as<A, T, L>(x + (n + i) * d + k) : Vec<A, L>{};
      }
      transpose_step<A, L, 1>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store<A, L>(panel + (k + i) * kPanel + n, block[i]);
    }
    for (; k < d; ++k) {
      for (int i = 0; i < L; ++i) {
        panel[k * kPanel + n + i] = n + i < count ? A(widen(x[(n + i) * d + k])) : A(0);
      }
    }
  }
}

template <class T, class A>
struct Functions {
  int64_t rows, panel;
  void (*pack)(const T* x, int64_t count, int64_t d, A* panel);
  void (*rank)(const Ranking<A>&);
  void (*finish)(Candidates<A>&, int64_t k, char* scratch, A* score, int64_t* item);
};

#define MMSSL_TOPK(name, target, lanes, rows, has_compress)                                       \
  template <class A>                                                                              \
  using Shape_##name = Shape<A, lanes / sizeof(A), rows, 3>;                                      \
  template <class A>                                                                              \
  using Select_##name = SelectShape<A, lanes / sizeof(A), has_compress>;                          \
  template <class A>                                                                              \
  target void rank_##name(const Ranking<A>& t) {                                                  \
    rank<Shape_##name<A>, Select_##name<A>>(t);                                                   \
  }                                                                                               \
  template <class A>                                                                              \
  target void finish_##name(Candidates<A>& c, int64_t k, char* scratch, A* score,                 \
                            int64_t* item) {                                                      \
    finish<Select_##name<A>>(c, k, scratch, score, item);                                  \
  }                                                                                               \
  template <class T, class A>                                                                     \
  target void pack_##name(const T* x, int64_t count, int64_t d, A* panel) {                       \
    pack<T, A, lanes / sizeof(A), Shape_##name<A>::kPanel>(x, count, d, panel);                   \
  }                                                                                               \
  template <class T, class A>                                                                     \
  constexpr Functions<T, A> table_##name = {rows, Shape_##name<A>::kPanel, pack_##name<T, A>,     \
                                            rank_##name<A>, finish_##name<A>};
MMSSL_TOPK(default, , 16, 4, false)
MMSSL_TOPK(avx2, MMSSL_TARGET_AVX2, 32, 4, false)
MMSSL_TOPK(avx512, MMSSL_TARGET_AVX512, 64, 8, true)
#undef MMSSL_TOPK
#pragma GCC pop_options

template <class T, class A>
const Functions<T, A>& functions() {
  return at_level(table_default<T, A>, table_avx2<T, A>, table_avx512<T, A>);
}

// Transposes up to `width` rows of d numbers, zero-padded: out[k * width + n] = row(n)[k].
template <class A, class Row>
void transpose(const Row& row, int64_t count, int64_t width, int64_t d, A* out) {
  for (int64_t n = 0; n < width; ++n) {
    if (n < count) {
      const auto* x = row(n);
      for (int64_t k = 0; k < d; ++k) out[k * width + n] = widen(x[k]);
    } else {
      for (int64_t k = 0; k < d; ++k) out[k * width + n] = A(0);
    }
  }
}

// The packed users, candidates and sorting space of one worker, in one allocation.
template <class A>
struct Workspace {
  Workspace() = default;
  Workspace(int64_t rows, int64_t d, int64_t k, int64_t capacity) {
    const int64_t row = capacity + 64 / sizeof(A);  // a vector more, for compress
    for (bool placing : {false, true}) {
      users = arena.take<A>(rows * d);
      score = arena.take<A>(rows * row);
      item = arena.take<int32_t>(rows * row);
      sorting = arena.take<char>(k > kFew ? 2 * k * (sizeof(A) + sizeof(int32_t)) : 0);
      if (!placing) arena.allocate();
    }
    for (int64_t r = 0; r < rows; ++r) {
      candidates.push_back({score + r * row, item + r * row, 0, A(0)});
    }
    excluded.resize(rows);
  }

  Arena arena;
  A *users = nullptr, *score = nullptr;
  int32_t* item = nullptr;
  char* sorting = nullptr;
  std::vector<Candidates<A>> candidates;
  std::vector<Excluded> excluded;
  std::vector<int32_t> sorted;  // train items of users whose lists are not sorted
};

// The train items of the users, ascending. Graphs store them in this order; others are sorted here.
template <class T, class A>
void find_excluded(const TopkArgs<T, A>& a, int64_t first, int64_t rows, Workspace<A>& w) {
  std::fill(w.excluded.begin(), w.excluded.end(), Excluded{nullptr, nullptr});
  if (a.rowptr == nullptr) return;
  int64_t unsorted = 0;
  const auto edges = [&](int64_t r) {
    const int64_t user = a.users == nullptr ? first + r : a.users[first + r];
    return Excluded{a.col + a.rowptr[user], a.col + a.rowptr[user + 1]};
  };
  for (int64_t r = 0; r < rows; ++r) {
    const Excluded own = edges(r);
    w.excluded[r] = own;
    if (!std::is_sorted(own.next, own.end)) unsorted += own.end - own.next;
  }
  if (unsorted == 0) return;
  w.sorted.resize(unsorted);
  int32_t* out = w.sorted.data();
  for (int64_t r = 0; r < rows; ++r) {
    Excluded& own = w.excluded[r];
    if (std::is_sorted(own.next, own.end)) continue;
    int32_t* end = std::copy(own.next, own.end, out);
    std::sort(out, end);
    own = {out, end};
    out = end;
  }
}

// Packs `rows` users from `first` on and empties their lists of candidates.
template <class T, class A>
void begin_users(const TopkArgs<T, A>& a, int64_t tile, int64_t first, int64_t rows,
                 Workspace<A>& w) {
  find_excluded(a, first, rows, w);
  for (int64_t i = 0; i < rows; i += tile) {
    const auto row = [&](int64_t n) {
      const int64_t b = first + i + n;
      return a.user_emb + (a.users == nullptr ? b : a.users[b]) * a.d;
    };
    transpose(row, std::min(tile, rows - i), tile, a.d, w.users + i * a.d);
  }
  for (Candidates<A>& c : w.candidates) {
    c.count = 0;
    c.threshold = -std::numeric_limits<A>::infinity();
  }
}

// Writes the lists of `rows` users from `first` on.
template <class T, class A>
void write_lists(const TopkArgs<T, A>& a, int64_t first, int64_t rows, Workspace<A>& w) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t out = (first + r) * a.k;
    functions<T, A>().finish(w.candidates[r], std::min(a.k, a.num_items), w.sorting,
                             a.scores + out, a.items + out);
    const int64_t found = w.candidates[r].count;
    std::fill_n(a.scores + out + found, a.k - found, -std::numeric_limits<A>::infinity());
    std::fill_n(a.items + out + found, a.k - found, int64_t(-1));
  }
}

// One tile of users: threads share the items, and each panel is packed once, where it is used, so
// that no copy of all items exists.
template <class T, class A>
void rank_few(const TopkArgs<T, A>& a, int64_t capacity, const Parallel& pool) {
  const Functions<T, A>& f = functions<T, A>();
  const int64_t k = std::min(a.k, a.num_items), panels = (a.num_items + f.panel - 1) / f.panel;
  const int64_t ranges =
      std::clamp<int64_t>(panels / kMinRangePanels, 1, std::max(pool.threads, 1));
  std::vector<Workspace<A>> parts(ranges);
  for_each_task(pool, ranges, [&](int64_t range) {
    Workspace<A>& w = parts[range] = Workspace<A>(f.rows, a.d, k, capacity);
    begin_users(a, f.rows, 0, a.batch, w);
    const Buffer<A> panel(f.panel * a.d);
    for (int64_t p = panels * range / ranges; p < panels * (range + 1) / ranges; ++p) {
      const int64_t begin = p * f.panel, end = std::min(begin + f.panel, a.num_items);
      f.pack(a.item_emb + begin * a.d, end - begin, a.d, panel.get());
      f.rank({w.users, panel.get(), begin, end, a.batch, a.d, k, capacity, w.candidates.data(),
              w.excluded.data()});
    }
  });
  if (ranges == 1) return write_lists(a, 0, a.batch, parts[0]);
  Workspace<A> all(f.rows, 0, k, ranges * capacity);
  for (int64_t r = 0; r < a.batch; ++r) {
    Candidates<A>& to = all.candidates[r];
    for (const Workspace<A>& w : parts) {  // in the order of the items
      const Candidates<A>& from = w.candidates[r];
      std::copy_n(from.score, from.count, to.score + to.count);
      std::copy_n(from.item, from.count, to.item + to.count);
      to.count += from.count;
    }
  }
  write_lists(a, 0, a.batch, all);
}

}  // namespace

template <class T, class A>
void masked_topk(const TopkArgs<T, A>& a, const Parallel& pool) {
  const Functions<T, A>& f = functions<T, A>();
  const int64_t k = std::min(a.k, a.num_items), panel = f.panel;
  if (a.batch == 0 || a.k == 0) return;
  const int64_t panels = (a.num_items + panel - 1) / panel;
  // Twice the candidates that are kept, but at most the number of items.
  const int64_t capacity = std::min(2 * k + 2 * panel, panels * panel + panel);
  if (a.batch <= f.rows) return rank_few(a, capacity, pool);

  const Buffer<A> items(panels * panel * a.d);
  for_each_task(pool, (panels + kPackPanels - 1) / kPackPanels, [&](int64_t task) {
    for (int64_t p = task * kPackPanels; p < std::min((task + 1) * kPackPanels, panels); ++p) {
      const int64_t j = p * panel;
      f.pack(a.item_emb + j * a.d, std::min(panel, a.num_items - j), a.d, items.get() + j * a.d);
    }
  });

  // Fewer users per task where the threads would have too few tasks.
  const int64_t share = a.batch / (4 * std::max(pool.threads, 1)) / f.rows * f.rows;
  const int64_t task_rows = std::clamp(share, f.rows, kTaskRows);
  const int64_t tasks = (a.batch + task_rows - 1) / task_rows;
  std::atomic<int64_t> next{0};
  for_each_task(pool, std::min<int64_t>(pool.threads, tasks), [&](int64_t) {
    int64_t task = next.fetch_add(1);
    if (task >= tasks) return;
    Workspace<A> w(task_rows, a.d, k, capacity);
    for (; task < tasks; task = next.fetch_add(1)) {
      const int64_t first = task * task_rows, rows = std::min(task_rows, a.batch - first);
      begin_users(a, f.rows, first, rows, w);
      f.rank({w.users, items.get(), 0, a.num_items, rows, a.d, k, capacity, w.candidates.data(),
              w.excluded.data()});
      write_lists(a, first, rows, w);
    }
  });
}

template void masked_topk(const TopkArgs<float, float>&, const Parallel&);
template void masked_topk(const TopkArgs<bf16, float>&, const Parallel&);
template void masked_topk(const TopkArgs<double, double>&, const Parallel&);

}  // namespace mmssl::cpu
