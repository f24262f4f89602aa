#include "ops/topk/topk.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "ops/topk/workspace.h"

namespace mmssl::cpu {
namespace {

// Users of a task: enough to make it worthwhile to load a panel of items into the first-level
// cache.
constexpr int64_t kTaskRows = 32;
// Panels of items that are packed at a time.
constexpr int64_t kPackPanels = 16;
// Minimum number of users for which it pays to order the items by their norms.
constexpr int64_t kOrderRows = 256;
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
  target void pack_##name(const T* x, const int32_t* ids, int64_t begin, int64_t count,           \
                          int64_t d, A* panel) {                                                  \
    pack<T, A, lanes / sizeof(A), Shape_##name<A>::kPanel>(x, ids, begin, count, d, panel);       \
  }                                                                                               \
  template <class T, class A>                                                                     \
  target A norm_##name(const T* x, int64_t d) {                                                   \
    return norm_above<T, A, lanes / sizeof(A)>(x, d);                                             \
  }                                                                                               \
  template <class T, class A>                                                                     \
  constexpr Functions<T, A, A> table_##name = {rows,           Shape_##name<A>::kPanel,           \
                                               pack_##name<T, A>, norm_##name<T, A>,              \
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
MMSSL_TARGET_AVX512 void pack_words(const bf16* x, const int32_t* ids, int64_t begin, int64_t count,
                                    int64_t depth, uint32_t* panel) {
  pack<uint32_t, uint32_t, DotShape::kLanes, DotShape::kPanel>(
      reinterpret_cast<const uint32_t*>(x), ids, begin, count, depth, panel);
}
constexpr Functions<bf16, float, uint32_t> table_words = {
    DotShape::kRows, DotShape::kPanel,  pack_words, norm_avx512<bf16, float>,
    rank_words,      finish_avx512<float>};
#endif
#pragma GCC pop_options

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
    Workspace<A, In>& w = parts[range] = Workspace<A, In>(f.rows, depth, k, capacity, a.num_items);
    begin_users(a, f, ItemOrder<A>{}, depth, 0, a.batch, w);
    const Buffer<In> panel(f.panel * depth);
    for (int64_t p = panels * range / ranges; p < panels * (range + 1) / ranges; ++p) {
      const int64_t begin = p * f.panel, end = std::min(begin + f.panel, a.num_items);
      f.pack(a.item_emb, nullptr, begin, end - begin, depth, panel.get());
      f.rank({w.users, panel.get(), nullptr, nullptr, begin, end, a.batch, depth, k, capacity,
              w.ranked.data(), w.threshold, w.norm});
    }
  });
  if (ranges == 1) return write_lists(a, f, 0, a.batch, parts[0]);
  Workspace<A, In> all(f.rows, 0, k, ranges * capacity, 0);
  for (int64_t r = 0; r < a.batch; ++r) {
    Candidates<A>& to = all.ranked[r].candidates;
    for (const Workspace<A, In>& w : parts) {
      const Candidates<A>& from = w.ranked[r].candidates;
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

  const bool ordered = a.batch >= kOrderRows && panels > 0;
  const auto order = ordered ? by_norm(a, f, panels, pool) : ItemOrder<A>{};
  const int32_t* ids = order.ids.get();
  const Buffer<In> items(panels * panel * depth);
  for_each_task(pool, (panels + kPackPanels - 1) / kPackPanels, [&](int64_t task) {
    for (int64_t p = task * kPackPanels; p < std::min((task + 1) * kPackPanels, panels); ++p) {
      const int64_t j = p * panel;
      f.pack(a.item_emb, ids, j, std::min(panel, a.num_items - j), depth, items.get() + j * depth);
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
    Workspace<A, In> w(task_rows, depth, k, capacity, a.num_items);
    for (; task < tasks; task = next.fetch_add(1)) {
      const int64_t first = task * task_rows, rows = std::min(task_rows, a.batch - first);
      begin_users(a, f, order, depth, first, rows, w);
      f.rank({w.users, items.get(), ids, order.largest.get(), 0, a.num_items, rows, depth, k,
              capacity, w.ranked.data(), w.threshold, w.norm});
      write_lists(a, f, first, rows, w);
      mark_excluded(a, order, w, first, rows, false);
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
