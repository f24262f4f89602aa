// Where the operands of the tile tasks live, and which compiled tile serves this processor.
#pragma once
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/info_nce_schedule.h"
#include "cpu/info_nce_tile.h"

namespace mmssl::cpu {

// Uninitialised, on cache line bounds.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) {
    const size_t bytes = (size * sizeof(T) + 127) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Hands out the parts of one allocation: take everything, allocate, take everything again. One block
// that malloc keeps from call to call, where many large ones would be unmapped and faulted in anew.
class Arena {
 public:
  template <class T>
  T* take(int64_t size) {
    char* const at = memory_.get() == nullptr ? nullptr : memory_.get() + used_;
    used_ += (size * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
  void allocate() {
    memory_ = Buffer<char>(used_);
    used_ = 0;
  }

 private:
  Buffer<char> memory_;
  int64_t used_ = 0;
};

// The row sets cut into chunks. Copies of a set: one per pair, of the negatives one in all.
struct Layout {
  int64_t rows[kSets], chunks[kSets], copies[kSets];
  int64_t chunk, d;

  int64_t padded(int set) const { return chunks[set] * chunk; }
  int64_t rows_in(int set, int64_t c) const { return std::min(chunk, rows[set] - c * chunk); }
  // First row of a chunk among the padded rows of all copies of its set.
  int64_t first_row(int set, int64_t copy, int64_t c) const {
    return copy * padded(set) + c * chunk;
  }
};

template <class A>
struct TileFunctions {
  using Function = void (*)(const Tile<A>&);
  int64_t lanes, panel;
  Function max;
  Function sum[2][2];   // [shifted][columns]
  Function grad[2][2];  // [shifted][columns]
  // info_nce_rows.h
  void (*normalise)(const A* x, int64_t rows, int64_t d, int64_t ld, A* z, double* norm);
  void (*make_panels)(const A* z, int64_t rows, int64_t d, int64_t ld, A* out);
  double (*through_norm)(const A* z, const A* other, A weight, A* dz, double norm, double scale,
                         int64_t d, A* out);
};

template <class A>
const TileFunctions<A>& tile_functions();

// Scores and gradients in A, from normalised copies of the rows.
template <class A>
class PlainEngine {
 public:
  explicit PlainEngine(const Layout& layout)
      : layout_(layout), functions_(tile_functions<A>()) {
    const int64_t lanes = functions_.lanes;
    ld_ = (layout.d + lanes - 1) / lanes * lanes;
  }

  void place(Arena& arena, bool gradients) {
    for (int s = 0; s < kSets; ++s) {
      const int64_t rows = layout_.copies[s] * layout_.padded(s);
      rows_[s] = arena.take<A>(rows * ld_);
      panels_[s] = arena.take<A>(rows * layout_.d);
      if (gradients) grads_[s] = arena.take<A>(rows * ld_);
    }
  }

  // Fills the operands of one chunk from its `rows` rows x (rows, d), and their norms.
  void pack(int set, int64_t first_row, const A* x, int64_t rows, double* norm) {
    const int64_t d = layout_.d, chunk = layout_.chunk;
    A* z = rows_[set] + first_row * ld_;
    functions_.normalise(x, rows, d, ld_, z, norm);
    std::fill(z + rows * ld_, z + chunk * ld_, A(0));
    functions_.make_panels(z, chunk, d, ld_, panels_[set] + first_row * d);
    if (A* g = grads_[set]) std::fill_n(g + first_row * ld_, chunk * ld_, A(0));
  }
  void pack(int set, int64_t first_row, const bf16* x, int64_t rows, double* norm) {
    Buffer<A> wide(rows * layout_.d);
    std::transform(x, x + rows * layout_.d, wide.get(), [](bf16 v) { return to_float(v); });
    pack(set, first_row, wide.get(), rows, norm);
  }

  void max(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    functions_.max(with_operands(t, p, p_row, q, q_row));
  }
  void sum(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    functions_.sum[t.p_shift != nullptr][t.q_sum != nullptr](
        with_operands(t, p, p_row, q, q_row));
  }
  void grad(Tile<A> t, int p, int64_t p_row, int q, int64_t q_row) const {
    t.p_grad = grads_[p] + p_row * ld_;
    t.q_grad = t.same_rows ? nullptr : grads_[q] + q_row * ld_;
    functions_.grad[t.p_shift != nullptr][t.q_weight != nullptr](
        with_operands(t, p, p_row, q, q_row));
  }

  // A row of the normalised set or of its gradient, (d), here or in the given place.
  const A* normalised(int set, int64_t row, A*) const { return rows_[set] + row * ld_; }
  A* gradient(int set, int64_t row, A*) const { return grads_[set] + row * ld_; }

 private:
  const Tile<A>& with_operands(Tile<A>& t, int p, int64_t p_row, int q, int64_t q_row) const {
    t.d = layout_.d;
    t.ld = ld_;
    t.p = rows_[p] + p_row * ld_;
    t.q = rows_[q] + q_row * ld_;
    t.q_t = panels_[q] + q_row * layout_.d;
    return t;
  }

  Layout layout_;
  const TileFunctions<A>& functions_;
  int64_t ld_;
  A *rows_[kSets] = {}, *panels_[kSets] = {}, *grads_[kSets] = {};
};

}  // namespace mmssl::cpu
