// The layouts of bfloat16 rows that the tiles read.
#include <bit>
#include <cmath>

#include "cpu/info_nce_bf16.h"
#include "cpu/info_nce_rows.h"

namespace mmssl::cpu {
namespace {

// z (rows, width, zero-padded) = the rows of x (rows, d) times a power of two, of a norm in [1, 2).
// norm gets the norms of x and inverse 1 / the norms of z.
MMSSL_TARGET_AVX512 void scale_rows(const bf16* x, int64_t rows, int64_t d, int64_t width, bf16* z,
                                    double* norm, float* inverse) {
  constexpr int L = 16;
  using Half = Vec<uint16_t, L>;
  Buffer<float> wide(width);
  std::fill_n(wide.get(), width, 0.0f);
  for (int64_t i = 0; i < rows; ++i, x += d, z += width) {
    for (int64_t k = 0; k < d; ++k) wide.get()[k] = to_float(x[k]);
    norm[i] = clamped_norm(wide.get(), d);
    // norm = fraction * 2^exponent, fraction in [1, 2), read from its bits: there is one each row.
    const auto bits = std::bit_cast<uint64_t>(norm[i]);
    const bool finite = std::isfinite(norm[i]);
    const int exponent = finite ? int(bits >> 52) - 1023 : 0;
    if (finite) inverse[i] = float(std::bit_cast<double>(uint64_t(1023 + exponent) << 52) / norm[i]);
    const float factor = float(std::bit_cast<double>(uint64_t(1023 - exponent) << 52));
    for (int64_t k = 0; k < width; k += L) {
      const auto words = round_to_bf16<L>(load<float, L>(wide.get() + k) * factor) >> 16;
      const Half halves = __builtin_convertvector(words, Half);
      __builtin_memcpy(z + k, &halves, sizeof(halves));
    }
  }
}

// Words are moved as they are, whatever number they would be.
MMSSL_TARGET_AVX512 void make_word_panels(const uint32_t* words, int64_t rows, int64_t depth,
                                          uint32_t* out) {
  make_panels<int32_t, 16, kBf16Panel>(reinterpret_cast<const int32_t*>(words), rows, depth, depth,
                                       reinterpret_cast<int32_t*>(out));
}

// pairs (rows / 2, ld): the numbers of two rows of z (rows, width) in one word.
MMSSL_TARGET_AVX512 void interleave_rows(const bf16* z, int64_t rows, int64_t width, int64_t ld,
                                         uint32_t* pairs) {
  for (int64_t i = 0; i < rows; i += 2, z += 2 * width, pairs += ld) {
    for (int64_t k = 0; k < ld; ++k) {
      pairs[k] = uint32_t(z[k].bits) | uint32_t(z[width + k].bits) << 16;
    }
  }
}

}  // namespace

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

void Bf16Engine::pack(int set, int64_t first_row, const bf16* x, int64_t rows, double* norm) {
  const int64_t chunk = layout_.chunk;
  uint32_t* words = words_[set] + first_row * depth_;
  float* inverse = inverse_[set] + first_row;
  auto* z = reinterpret_cast<bf16*>(words);
  std::fill_n(inverse, chunk, 1.0f);
  scale_rows(x, rows, layout_.d, 2 * depth_, z, norm, inverse);
  std::fill(words + rows * depth_, words + chunk * depth_, 0u);
  make_word_panels(words, chunk, depth_, panels_[set] + first_row * depth_);
  if (grads_[set] == nullptr) return;
  std::fill_n(grads_[set] + first_row * ld_, chunk * ld_, 0.0f);
  interleave_rows(z, chunk, 2 * depth_, ld_, pairs_[set] + first_row / 2 * ld_);
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

MMSSL_TARGET_AVX512 const float* Bf16Engine::normalised(int set, int64_t row, float* out) const {
  const auto* z = reinterpret_cast<const bf16*>(words_[set] + row * depth_);
  const float inverse = inverse_[set][row];
  for (int64_t k = 0; k < layout_.d; ++k) out[k] = to_float(z[k]) * inverse;
  return out;
}

MMSSL_TARGET_AVX512 float* Bf16Engine::gradient(int set, int64_t row, float* out) const {
  const float norm = 1 / inverse_[set][row];
  const float* g = grads_[set] + row * ld_;
  const float* g_t = grads_t_[set];
  if (g_t == nullptr) {
    for (int64_t k = 0; k < layout_.d; ++k) out[k] = g[k] * norm;
    return out;
  }
  const int64_t chunk = layout_.chunk, first = row / chunk * chunk;
  for (int64_t k = 0; k < layout_.d; ++k) {
    out[k] = (g[k] + g_t[first * ld_ + k * chunk + row - first]) * norm;
  }
  return out;
}

}  // namespace mmssl::cpu
