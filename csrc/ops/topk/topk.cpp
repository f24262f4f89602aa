#include "ops/topk/topk.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/buffer.h"
#include "ops/topk/rank.h"

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

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#define MMSSL_TOPK(name, target, lanes, rows, has_compress)                                       \
  template <class A>                                                                              \
  using Shape_##name = Shape<A, lanes / sizeof(A), rows, 3>;                                      \
  template <class A>                                                                              \
  using Select_##name = SelectShape<A, lanes / sizeof(A), has_compress>;                          \
  template <class A>                                                                              \
  target void rank_##name(const Ranking<A, A>& t) {                                               \
    rank<Shape_##name<A>, Select_##name<A>>(t);                                                   \
  }                                                                                               \
  template <class A>                                                                              \
  target void finish_##name(Candidates<A>& c, int64_t k, char* scratch, A* score,                 \
                            int64_t* item) {                                                      \
    finish<Select_##name<A>>(c, k, scratch, score, item);                                         \
  }                                                                                               \
  template <class T, class A>                                                                     \
  target void pack_##name(const T* x, int64_t count, int64_t d, A* panel) {                       \
    pack<T, A, lanes / sizeof(A), Shape_##name<A>::kPanel>(x, count, d, panel);                   \
  }                                                                                               \
  template <class T, class A>                                                                     \
  constexpr Functions<T, A, A> table_##name = {rows, Shape_##name<A>::kPanel, pack_##name<T, A>,  \
                                               rank_##name<A>, finish_##name<A>};
MMSSL_TOPK(default, , 16, 4, false)
MMSSL_TOPK(avx2, MMSSL_TARGET_AVX2, 32, 4, false)
MMSSL_TOPK(avx512, MMSSL_TARGET_AVX512, 64, 8, true)
#undef MMSSL_TOPK

#if defined(__x86_64__)
struct DotShape : WordShape {
  static constexpr int kRows = 8, kVecs = 3, kPanel = kLanes * kVecs;
};
MMSSL_TARGET_AVX512 void rank_words(const Ranking<float, uint32_t>& t) {
  rank<DotShape, Select_avx512<float>>(t);
}
MMSSL_TARGET_AVX512 void pack_words(const bf16* x, int64_t count, int64_t depth, uint32_t* panel) {
  pack<uint32_t, uint32_t, DotShape::kLanes, DotShape::kPanel>(
      reinterpret_cast<const uint32_t*>(x), count, depth, panel);
}
constexpr Functions<bf16, float, uint32_t> table_words = {
    DotShape::kRows, DotShape::kPanel, pack_words, rank_words, finish_avx512<float>};
#endif
#pragma GCC pop_options

// The k-th operand of a row: a number, or the word of two.
template <class In, class T>
MMSSL_INLINE In operand(const T* x, int64_t k) {
  if constexpr (std::is_same_v<In, uint32_t>) {
    uint32_t word;
    __builtin_memcpy(&word, x + 2 * k, sizeof(word));
    return word;
  } else {
    return widen(x[k]);
  }
}

// Transposes up to `width` rows of operands, zero-padded: out[k * width + n] = row(n)[k].
template <class In, class Row>
void transpose(const Row& row, int64_t count, int64_t width, int64_t depth, In* out) {
  for (int64_t n = 0; n < width; ++n) {
    if (n < count) {
      const auto* x = row(n);
      for (int64_t k = 0; k < depth; ++k) out[k * width + n] = operand<In>(x, k);
    } else {
      for (int64_t k = 0; k < depth; ++k) out[k * width + n] = In(0);
    }
  }
}

// The packed users, candidates and sorting space of one worker, in one allocation.
template <class A, class In>
struct Workspace {
  Workspace() = default;
  Workspace(int64_t rows, int64_t depth, int64_t k, int64_t capacity) {
    const int64_t row = capacity + 64 / sizeof(A);  // a vector more, for compress
    for (bool placing : {false, true}) {
      users = arena.take<In>(rows * depth);
      threshold = arena.take<A>(rows);
      score = arena.take<A>(rows * row);
      item = arena.take<int32_t>(rows * row);
      sorting = arena.take<char>(k > kFew ? 2 * k * (sizeof(A) + sizeof(int32_t)) : 0);
      if (!placing) arena.allocate();
    }
    for (int64_t r = 0; r < rows; ++r) {
      candidates.push_back({score + r * row, item + r * row, 0});
    }
    excluded.resize(rows);
  }

  Arena arena;
  In* users = nullptr;
  A *threshold = nullptr, *score = nullptr;
  int32_t* item = nullptr;
  char* sorting = nullptr;
  std::vector<Candidates<A>> candidates;
  std::vector<Excluded> excluded;
  std::vector<int32_t> sorted;  // train items of users whose lists are not sorted
};

// The train items of the users, ascending. Graphs store them in this order; others are sorted here.
template <class T, class A, class In>
void find_excluded(const TopkArgs<T, A>& a, int64_t first, int64_t rows, Workspace<A, In>& w) {
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
template <class T, class A, class In>
void begin_users(const TopkArgs<T, A>& a, int64_t depth, int64_t tile, int64_t first, int64_t rows,
                 Workspace<A, In>& w) {
  find_excluded(a, first, rows, w);
  for (int64_t i = 0; i < rows; i += tile) {
    const auto row = [&](int64_t n) {
      const int64_t b = first + i + n;
      return a.user_emb + (a.users == nullptr ? b : a.users[b]) * a.d;
    };
    transpose(row, std::min(tile, rows - i), tile, depth, w.users + i * depth);
  }
  for (Candidates<A>& c : w.candidates) c.count = 0;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  for (int64_t r = 0; r < int64_t(w.candidates.size()); ++r) {
    w.threshold[r] = r < rows ? -kInfinity : kInfinity;
  }
}

// Writes the lists of `rows` users from `first` on.
template <class T, class A, class In>
void write_lists(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, int64_t first, int64_t rows,
                 Workspace<A, In>& w) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t out = (first + r) * a.k;
    f.finish(w.candidates[r], std::min(a.k, a.num_items), w.sorting, a.scores + out, a.items + out);
    const int64_t found = w.candidates[r].count;
    std::fill_n(a.scores + out + found, a.k - found, -std::numeric_limits<A>::infinity());
    std::fill_n(a.items + out + found, a.k - found, int64_t(-1));
  }
}

// One tile of users: threads share the items, and each panel is packed once, where it is used, so
// that no copy of all items exists.
template <class T, class A, class In>
void rank_few(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, int64_t depth,
              int64_t capacity, const Parallel& pool) {
  const int64_t k = std::min(a.k, a.num_items), panels = (a.num_items + f.panel - 1) / f.panel;
  const int64_t ranges =
      std::clamp<int64_t>(panels / kMinRangePanels, 1, std::max(pool.threads, 1));
  std::vector<Workspace<A, In>> parts(ranges);
  for_each_task(pool, ranges, [&](int64_t range) {
    Workspace<A, In>& w = parts[range] = Workspace<A, In>(f.rows, depth, k, capacity);
    begin_users(a, depth, f.rows, 0, a.batch, w);
    const Buffer<In> panel(f.panel * depth);
    for (int64_t p = panels * range / ranges; p < panels * (range + 1) / ranges; ++p) {
      const int64_t begin = p * f.panel, end = std::min(begin + f.panel, a.num_items);
      f.pack(a.item_emb + begin * a.d, end - begin, depth, panel.get());
      f.rank({w.users, panel.get(), begin, end, a.batch, depth, k, capacity, w.candidates.data(),
              w.threshold, w.excluded.data()});
    }
  });
  if (ranges == 1) return write_lists(a, f, 0, a.batch, parts[0]);
  Workspace<A, In> all(f.rows, 0, k, ranges * capacity);
  for (int64_t r = 0; r < a.batch; ++r) {
    Candidates<A>& to = all.candidates[r];
    for (const Workspace<A, In>& w : parts) {  // in the order of the items
      const Candidates<A>& from = w.candidates[r];
      std::copy_n(from.score, from.count, to.score + to.count);
      std::copy_n(from.item, from.count, to.item + to.count);
      to.count += from.count;
    }
  }
  write_lists(a, f, 0, a.batch, all);
}

template <class T, class A, class In>
void rank_all(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, int64_t depth,
              const Parallel& pool) {
  const int64_t k = std::min(a.k, a.num_items), panel = f.panel;
  const int64_t panels = (a.num_items + panel - 1) / panel;
  // Twice the candidates that are kept, but at most the number of items.
  const int64_t capacity = std::min(2 * k + 2 * panel, panels * panel + panel);
  if (a.batch <= f.rows) return rank_few(a, f, depth, capacity, pool);

  const Buffer<In> items(panels * panel * depth);
  for_each_task(pool, (panels + kPackPanels - 1) / kPackPanels, [&](int64_t task) {
    for (int64_t p = task * kPackPanels; p < std::min((task + 1) * kPackPanels, panels); ++p) {
      const int64_t j = p * panel;
      f.pack(a.item_emb + j * a.d, std::min(panel, a.num_items - j), depth, items.get() + j * depth);
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
    Workspace<A, In> w(task_rows, depth, k, capacity);
    for (; task < tasks; task = next.fetch_add(1)) {
      const int64_t first = task * task_rows, rows = std::min(task_rows, a.batch - first);
      begin_users(a, depth, f.rows, first, rows, w);
      f.rank({w.users, items.get(), 0, a.num_items, rows, depth, k, capacity, w.candidates.data(),
              w.threshold, w.excluded.data()});
      write_lists(a, f, first, rows, w);
    }
  });
}

}  // namespace

template <class T, class A>
void masked_topk(const TopkArgs<T, A>& a, const Parallel& pool) {
  if (a.batch == 0 || a.k == 0) return;
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, bf16>) {
    // AMX machines have the instruction as well, where it is as fast as float32.
    if (bf16_unit() == Bf16Unit::kDot && a.d % 2 == 0) {
      return rank_all(a, table_words, a.d / 2, pool);
    }
  }
#endif
  rank_all(a, at_level(table_default<T, A>, table_avx2<T, A>, table_avx512<T, A>), a.d, pool);
}

template void masked_topk(const TopkArgs<float, float>&, const Parallel&);
template void masked_topk(const TopkArgs<bf16, float>&, const Parallel&);
template void masked_topk(const TopkArgs<double, double>&, const Parallel&);

}  // namespace mmssl::cpu
