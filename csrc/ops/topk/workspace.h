// What a call and each of its threads prepare for ranking: the order of the items, and the packed users
// with their candidates.
#pragma once
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "ops/topk/rank.h"
#include "ops/topk/topk.h"

namespace mmssl::cpu {

// The items by descending norm, so that the first ones raise a user's threshold and the last ones
// can't reach it. Null: in the order of their ids, with unknown norms.
template <class A>
struct ItemOrder {
  Buffer<int32_t> ids, position;  // of each position, padded to panels; of each id
  Buffer<A> largest;              // (panels) the norm of the first item, rounded up
};

template <class T, class A, class In>
ItemOrder<A> by_norm(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, int64_t panels,
                     const Parallel& pool) {
  constexpr int64_t kRows = 1024;
  const int64_t n = a.num_items;
  const Buffer<A> norm(n), sorted(n);
  ItemOrder<A> order{Buffer<int32_t>(panels * f.panel), Buffer<int32_t>(n), Buffer<A>(panels)};
  int32_t *ids = order.ids.get(), *position = order.position.get();
  for_each_task(pool, (n + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t i = task * kRows; i < std::min((task + 1) * kRows, n); ++i) {
      norm.get()[i] = f.norm(a.item_emb + i * a.d, a.d);
      position[i] = int32_t(i);
    }
  });
  const Buffer<KeyBits<A>> keys(2 * n);
  const Buffer<int32_t> scratch(2 * n);
  const Buffer<int64_t> item(n);
  sort_many<A>({norm.get(), position, n}, keys.get(), scratch.get(), sorted.get(), item.get());
  if (sorted.get()[n - 1] > A(.9) * sorted.get()[0]) return {};
  for (int64_t j = 0; j < panels * f.panel; ++j) ids[j] = j < n ? int32_t(item.get()[j]) : 0;
  for (int64_t j = 0; j < n; ++j) position[ids[j]] = int32_t(j);
  for (int64_t p = 0; p < panels; ++p) order.largest.get()[p] = sorted.get()[p * f.panel];
  return order;
}

// The packed users, candidates and sorting space of one worker, in one allocation.
template <class A, class In>
struct Workspace {
  Workspace() = default;
  Workspace(int64_t rows, int64_t depth, int64_t k, int64_t capacity, int64_t num_items) {
    const int64_t row = capacity + 64 / sizeof(A);  // a vector more, for compress
    const int64_t bits = num_items / 8 + 16;        // a word more, and those of padding
    A* score = nullptr;
    int32_t* item = nullptr;
    uint8_t* excluded = nullptr;
    for (bool placing : {false, true}) {
      users = arena.take<In>(rows * depth);
      threshold = arena.take<A>(rows);
      norm = arena.take<A>(rows);
      score = arena.take<A>(rows * row);
      item = arena.take<int32_t>(rows * row);
      excluded = arena.take<uint8_t>(rows * bits);
      sorting = arena.take<char>(k > kFew ? 2 * k * (sizeof(A) + sizeof(int32_t)) : 0);
      if (!placing) arena.allocate();
    }
    for (int64_t r = 0; r < rows; ++r, excluded += bits) {
      ranked.push_back({{score + r * row, item + r * row, 0}, excluded, r});
      std::fill_n(excluded, num_items / 8, uint8_t(0));
      excluded[num_items / 8] = uint8_t(0xff << num_items % 8);
      std::fill(excluded + num_items / 8 + 1, excluded + bits, uint8_t(0xff));
    }
  }

  Arena arena;
  In* users = nullptr;
  A *threshold = nullptr, *norm = nullptr;
  char* sorting = nullptr;
  std::vector<Ranked<A>> ranked;  // some first ones in the order in which they were begun
};

// Sets or clears the bits of the users' train items.
template <class T, class A, class In>
void mark_excluded(const TopkArgs<T, A>& a, const ItemOrder<A>& order, Workspace<A, In>& w,
                   int64_t first, int64_t rows, bool set) {
  if (a.rowptr == nullptr) return;
  const int32_t* position = order.position.get();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = first + w.ranked[r].index, user = a.users == nullptr ? b : a.users[b];
    uint8_t* const excluded = w.ranked[r].excluded;
    for (int64_t e = a.rowptr[user]; e < a.rowptr[user + 1]; ++e) {
      if (a.col[e] < 0 || a.col[e] >= a.num_items) continue;
      const int32_t j = position == nullptr ? a.col[e] : position[a.col[e]];
      const auto bit = uint8_t(1 << j % 8);
      excluded[j / 8] = set ? excluded[j / 8] | bit : excluded[j / 8] & ~bit;
    }
  }
}

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

// Packs `rows` users from `first` on into tiles, zero-padded, and empties their lists of candidates.
template <class T, class A, class In>
void begin_users(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, const ItemOrder<A>& order,
                 int64_t depth, int64_t first, int64_t rows, Workspace<A, In>& w) {
  const int64_t tile = f.rows;
  for (int64_t r = 0; r < int64_t(w.ranked.size()); ++r) {
    In* const column = w.users + r / tile * tile * depth + r % tile;
    w.ranked[r].index = r;
    w.ranked[r].candidates.count = 0;
    w.threshold[r] = (r < rows ? -1 : 1) * std::numeric_limits<A>::infinity();
    if (r >= rows) {
      for (int64_t k = 0; k < depth; ++k) column[k * tile] = In(0);
      continue;
    }
    const int64_t b = first + r;
    const T* const x = a.user_emb + (a.users == nullptr ? b : a.users[b]) * a.d;
    for (int64_t k = 0; k < depth; ++k) column[k * tile] = operand<In>(x, k);
    w.norm[r] = f.norm(x, a.d);
  }
  mark_excluded(a, order, w, first, rows, true);
}

// Writes the lists of `rows` users from `first` on.
template <class T, class A, class In>
void write_lists(const TopkArgs<T, A>& a, const Functions<T, A, In>& f, int64_t first, int64_t rows,
                 Workspace<A, In>& w) {
  for (int64_t r = 0; r < rows; ++r) {
    Candidates<A>& c = w.ranked[r].candidates;
    const int64_t out = (first + w.ranked[r].index) * a.k;
    f.finish(c, std::min(a.k, a.num_items), w.sorting, a.scores + out, a.items + out);
    std::fill_n(a.scores + out + c.count, a.k - c.count, -std::numeric_limits<A>::infinity());
    std::fill_n(a.items + out + c.count, a.k - c.count, int64_t(-1));
  }
}

}  // namespace mmssl::cpu
