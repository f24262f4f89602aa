#include "ops/sampling/sampling.h"

#include <vector>

namespace mmssl::cpu {
namespace {

// False for NaN.
bool is_draw(double draw) { return draw >= 0 && draw < 1; }

// The positions of a shuffled array that do not hold their own number: an open hash table of at
// most `entries` positions.
class Moved {
 public:
  explicit Moved(int64_t entries) {
    int64_t size = 2;
    while (size < 2 * entries) size *= 2;
    slots_.assign(size, {-1, 0});
  }
  int64_t get(int64_t position) const {
    const Slot& slot = slots_[find(position)];
    return slot.position == position ? slot.value : position;
  }
  void set(int64_t position, int64_t value) { slots_[find(position)] = {position, value}; }

 private:
  struct Slot {
    int64_t position, value;
  };
  size_t find(int64_t position) const {
    const uint64_t mask = slots_.size() - 1;
    uint64_t at = (uint64_t(position) * 0x9e3779b97f4a7c15u) >> 32 & mask;
    while (slots_[at].position >= 0 && slots_[at].position != position) at = (at + 1) & mask;
    return at;
  }
  std::vector<Slot> slots_;
};

}  // namespace

int64_t sample_bpr(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg) {
  // The first B steps of a Fisher-Yates shuffle. Position b is never read again after step b, so
  // only the numbers that move up are stored.
  Moved moved(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) {
    if (!is_draw(a.draw[b])) return b;
    const int64_t position = b + scaled(a.draw[b], a.num_candidates - b);
    user[b] = a.candidates[moved.get(position)];
    moved.set(position, moved.get(b));
  }
  for (int64_t b = 0; b < a.batch; ++b) {
    if (user[b] < 0 || user[b] >= a.num_users) return b;
    const int64_t first = a.rowptr[user[b]], end = a.rowptr[user[b] + 1];
    if (first < 0 || end > a.nnz || first >= end || end - first >= a.num_items) return b;
    if (!is_draw(a.draw[a.batch + b]) || !is_draw(a.draw[2 * a.batch + b])) return b;
    const int64_t degree = end - first;
    const int32_t* items = a.col + first;
    pos[b] = items[scaled(a.draw[a.batch + b], degree)];
    const int64_t rank = scaled(a.draw[2 * a.batch + b], a.num_items - degree);
    neg[b] = missing_item(items, degree, rank);
  }
  return -1;
}

}  // namespace mmssl::cpu
