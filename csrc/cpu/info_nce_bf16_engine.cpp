// The layouts of bfloat16 rows that the tiles read.
#include <cmath>

#include "cpu/info_nce_bf16.h"

namespace mmssl::cpu {

Bf16Engine::Bf16Engine(const Layout& layout)
    : layout_(layout), depth_(round_up(layout.d, 32) / 2), ld_(round_up(layout.d, 16)) {}

void Bf16Engine::place(Arena& arena, bool gradients) {
  for (int s = 0; s < kSets; ++s) {
    const int64_t rows = layout_.copies[s] * layout_.padded(s);
    words_[s] = arena.take<uint32_t>(rows * depth_);
    panels_[s] = arena.take<uint32_t>(rows * depth_);
    inverse_[s] = arena.take<float>(rows);
    if (!gradients) continue;
    pairs_[s] = arena.take<uint32_t>(rows / 2 * ld_);
    grads_[s] = arena.take<float>(rows * ld_);
    if (bf16_unit() == Bf16Unit::kAmx) {
      columns_[s] = arena.take<bf16>(rows * ld_);
      grads_t_[s] = arena.take<float>(rows * ld_);
    }
  }
}

void Bf16Engine::pack(int set, int64_t first_row, const bf16* x, int64_t rows, const double* norm) {
  const int64_t d = layout_.d, chunk = layout_.chunk;
  uint32_t* words = words_[set] + first_row * depth_;
  uint32_t* panels = panels_[set] + first_row * depth_;
  float* inverse = inverse_[set] + first_row;
  std::fill_n(words, chunk * depth_, 0u);
  std::fill_n(inverse, chunk, 1.0f);
  auto* z = reinterpret_cast<bf16*>(words);
  for (int64_t i = 0; i < rows; ++i) {
    int exponent = 0;
    const double fraction = std::frexp(norm[i], &exponent);  // norm = fraction * 2^exponent
    if (std::isfinite(norm[i])) inverse[i] = float(0.5 / fraction);
    const double factor = std::ldexp(1.0, 1 - exponent);
    for (int64_t k = 0; k < d; ++k) {
      z[i * 2 * depth_ + k] = to_bf16(float(factor * to_float(x[i * d + k])));
    }
  }
  for (int64_t j = 0; j < chunk; j += kBf16Panel) {
    for (int64_t k = 0; k < depth_; ++k) {
      for (int64_t c = 0; c < kBf16Panel; ++c) {
        panels[j * depth_ + k * kBf16Panel + c] = words[(j + c) * depth_ + k];
      }
    }
  }
  if (grads_[set] == nullptr) return;
  std::fill_n(grads_[set] + first_row * ld_, chunk * ld_, 0.0f);
  uint32_t* pairs = pairs_[set] + first_row / 2 * ld_;
  for (int64_t i = 0; i < chunk; i += 2) {
    for (int64_t k = 0; k < ld_; ++k) {
      const uint32_t low = z[i * 2 * depth_ + k].bits, high = z[(i + 1) * 2 * depth_ + k].bits;
      pairs[i / 2 * ld_ + k] = low | high << 16;
    }
  }
  if (grads_t_[set] == nullptr) return;
  std::fill_n(grads_t_[set] + first_row * ld_, chunk * ld_, 0.0f);
  bf16* columns = columns_[set] + first_row * ld_;
  for (int64_t k = 0; k < ld_; ++k) {
    for (int64_t i = 0; i < chunk; ++i) columns[k * chunk + i] = z[i * 2 * depth_ + k];
  }
}

Bf16Tile Bf16Engine::tile(const Tile<float>& common, int p, int64_t p_row, int q,
                          int64_t q_row) const {
  Bf16Tile t{common};
  t.d = layout_.d;
  t.ld = ld_;
  t.depth = depth_;
  t.chunk = layout_.chunk;
  t.words_p = words_[p] + p_row * depth_;
  t.panels_q = panels_[q] + q_row * depth_;
  t.p_inverse = inverse_[p] + p_row;
  t.q_inverse = inverse_[q] + q_row;
  return t;
}

void Bf16Engine::sum(const Tile<float>& common, int p, int64_t p_row, int q, int64_t q_row) const {
  const Bf16Tile t = tile(common, p, p_row, q, q_row);
  run_bf16_sum(t);
}

void Bf16Engine::grad(const Tile<float>& common, int p, int64_t p_row, int q, int64_t q_row) const {
  Bf16Tile t = tile(common, p, p_row, q, q_row);
  const bool amx = bf16_unit() == Bf16Unit::kAmx;
  t.pairs_p = pairs_[p] + p_row / 2 * ld_;
  t.pairs_q = pairs_[q] + q_row / 2 * ld_;
  t.p_grad = grads_[p] + p_row * ld_;
  t.q_grad = t.same_rows ? nullptr : grads_[q] + q_row * ld_;
  t.columns_p = amx ? columns_[p] + p_row * ld_ : nullptr;
  t.q_grad_t = amx ? grads_t_[q] + q_row * ld_ : nullptr;
  run_bf16_grad(t);
}

void Bf16Engine::normalised(int set, int64_t row, float* out) const {
  const auto* z = reinterpret_cast<const bf16*>(words_[set] + row * depth_);
  const float inverse = inverse_[set][row];
  for (int64_t k = 0; k < layout_.d; ++k) out[k] = to_float(z[k]) * inverse;
}

void Bf16Engine::gradient(int set, int64_t row, float* out) const {
  const float norm = 1 / inverse_[set][row];
  const float* g = grads_[set] + row * ld_;
  const int64_t chunk = layout_.chunk, first = row / chunk * chunk;
  const float* g_t = grads_t_[set];
  for (int64_t k = 0; k < layout_.d; ++k) {
    const float transposed = g_t == nullptr ? 0 : g_t[first * ld_ + k * chunk + row - first];
    out[k] = (g[k] + transposed) * norm;
  }
}

}  // namespace mmssl::cpu
