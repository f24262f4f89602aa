// The tiles of info_nce, compiled once per SIMD level: float32 and float64 everywhere, bfloat16
// where the processor multiplies it.
#include <cmath>

#include "common/row_norm.h"
#include "ops/info_nce/info_nce.h"

namespace mmssl::cpu {

namespace {

template <class A>
using Default = Shape<A, 16 / sizeof(A), 4, 3, 6, 2>;
template <class A>
using Avx2 = Shape<A, 32 / sizeof(A), 4, 3, 6, 2>;
template <class A>
using Avx512 = Shape<A, 64 / sizeof(A), 8, 3, 6, 4>;

// Chunks and blocks are cut into whole register tiles.
template <class S>
constexpr bool kFits = kMinChunk % S::kPanel == 0 && kMinChunk % S::kRows == 0 &&
                       kBlock % S::kPanel == 0 && kBlock % S::kRowsOut == 0 &&
                       kMinChunk % kBlock == 0 && kMaxChunk % kBlock == 0 &&
                       S::kPanel % S::kRowsOut == 0;
static_assert(kFits<Default<float>> && kFits<Default<double>> && kFits<Avx2<float>> &&
              kFits<Avx2<double>> && kFits<Avx512<float>> && kFits<Avx512<double>>);

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
#define MMSSL_TILES(name, target, shape)                                                      \
  template <class A>                                                                          \
  target void max_##name(const Tile<A>& t) {                                                  \
    max_tile<shape<A>>(t);                                                                    \
  }                                                                                           \
  template <class A, Shift kShift, bool kColumns>                                             \
  target void sum_##name(const Tile<A>& t) {                                                  \
    sum_tile<shape<A>, kShift, kColumns>(t);                                                  \
  }                                                                                           \
  template <class A, Shift kShift, bool kColumns>                                             \
  target void grad_##name(const Tile<A>& t) {                                                 \
    grad_tile<shape<A>, kShift, kColumns>(t);                                                 \
  }                                                                                           \
  template <class A>                                                                          \
  target void normalize_##name(const A* x, int64_t rows, int64_t d, int64_t ld, A* z,         \
                               double* norm) {                                                \
    normalize_rows<A, shape<A>::kLanes>(x, rows, d, ld, z, norm);                             \
  }                                                                                           \
  template <class A>                                                                          \
  target void panels_##name(const A* z, int64_t rows, int64_t d, int64_t ld, A* out) {        \
    make_panels<A, shape<A>::kLanes, shape<A>::kPanel>(z, rows, d, ld, out);                  \
  }                                                                                           \
  template <class A>                                                                          \
  target void add_##name(const A* row, A weight, int64_t d, A* sum) {                         \
    add_row<A, shape<A>::kLanes>(row, weight, d, sum);                                        \
  }                                                                                           \
  template <class A>                                                                          \
  target double through_##name(const A* z, const A* dz, double norm, double scale, int64_t d, \
                               A* out) {                                                      \
    return through_norm<A, shape<A>::kLanes>(z, dz, norm, scale, d, out);                     \
  }                                                                                           \
  template <class A>                                                                          \
  constexpr TileFunctions<A> table_##name = {                                                 \
      shape<A>::kLanes,                                                                       \
      shape<A>::kPanel,                                                                       \
      max_##name<A>,                                                                          \
      {{sum_##name<A, Shift::kFixed, false>, sum_##name<A, Shift::kFixed, true>},             \
       {sum_##name<A, Shift::kShifted, false>, sum_##name<A, Shift::kShifted, true>}},        \
      {{grad_##name<A, Shift::kFixed, false>, grad_##name<A, Shift::kFixed, true>},           \
       {grad_##name<A, Shift::kShifted, false>, grad_##name<A, Shift::kShifted, true>}},        \
      normalize_##name<A>,                                                                    \
      panels_##name<A>,                                                                       \
      add_##name<A>,                                                                          \
      through_##name<A>};
MMSSL_TILES(default, , Default)
MMSSL_TILES(avx2, MMSSL_TARGET_AVX2, Avx2)
MMSSL_TILES(avx512, MMSSL_TARGET_AVX512, Avx512)
#undef MMSSL_TILES
#pragma GCC pop_options

constexpr int kLanes = 16, kRows = 16;  // of a vector; of a block of scores
constexpr int64_t kStep = 96;  // with AMX columns are padded to whole panels and whole tile depths
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
using V = Vec<float, kLanes>;
using Halves = Vec<uint16_t, 2 * kLanes>;

// score (kRows, cols) of the rows from i on, from the column `first` on, the first of a panel.
template <Bf16Unit kUnit>
MMSSL_INLINE void score_rows(const Bf16Tile& t, int64_t i, int64_t first, int64_t cols,
                             float* score) {
  for (int64_t j = first; j < cols; j += kWordPanel) {
    multiply_panel<kUnit>(t.words_p + i * t.depth, t.panels_q + j * t.depth, t.depth, cols - j,
                          score + j, kMaxChunk);
  }
}

MMSSL_INLINE bool some_left_out(const Bf16Tile& t, int64_t i, int64_t cols) {
  return t.same_rows || cols > t.cols || i + kRows > t.rows;
}

template <bool kColumns, bool kEdge>
MMSSL_INLINE void add_rows(const Bf16Tile& t, int64_t i, int64_t first, int64_t cols,
                           const float* score, V* row_sum, float* column_sum) {
  const Exp2<float, kLanes> exp2;
  for (int64_t half = 0; half < kRows; half += 8) {
    V sum[8] = {}, scale[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) scale[r] = V{} + t.p_inverse[i + half + r] * t.scale;
    for (int64_t j = first; j < cols; j += kLanes) {
      const V q = load<float, kLanes>(t.q_inverse + j);
      V column = load<float, kLanes>(column_sum + j);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        const V s = load<float, kLanes>(score + (half + r) * kMaxChunk + j) * q;
        V e = exp2(s * scale[r] + t.shift);
        if constexpr (kEdge) {
          e = counted<float, kLanes, true>(e, i + half + r, j, t.rows, t.cols, t.same_rows);
        }
        sum[r] += e;
        if constexpr (kColumns) column += e;
      }
      if constexpr (kColumns) store<float, kLanes>(column_sum + j, column);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) row_sum[half + r] = sum[r];
  }
}

template <Bf16Unit kUnit, bool kColumns>
MMSSL_INLINE void sum_bf16(const Bf16Tile& t) {
  alignas(64) float score[kRows * kMaxChunk];
  alignas(64) float column_sum[kMaxChunk] = {};
  const int64_t cols = round_up(t.cols, kUnit == Bf16Unit::kAmx ? kWordPanel : kLanes);
  const TileConfig config;
  if constexpr (kUnit == Bf16Unit::kAmx) asm volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t i = 0; i < t.rows; i += kRows) {
    V row_sum[kRows];
    // A chunk with itself: the triangle above the diagonal, for its rows and its columns.
    const int64_t first = t.same_rows ? i / kWordPanel * kWordPanel : 0;
    score_rows<kUnit>(t, i, first, cols, score);
    if (some_left_out(t, i, cols)) {
      add_rows<kColumns, true>(t, i, first, cols, score, row_sum, column_sum);
    } else {
      add_rows<kColumns, false>(t, i, first, cols, score, row_sum, column_sum);
    }
    for (int64_t r = 0; r < kRows && i + r < t.rows; ++r) {
      const int64_t column = t.positive != nullptr ? t.column(i + r) : -1;
      if (column >= 0 && column < t.cols) {
        t.positive[i + r] = double(score[r * kMaxChunk + column]) * t.p_inverse[i + r] *
                            t.q_inverse[column];
      }
      t.p_sum[i + r] += sum_lanes<float, kLanes>(row_sum[r]);
    }
  }
  if constexpr (kUnit == Bf16Unit::kAmx) asm volatile("tilerelease" ::);
  if constexpr (kColumns) {
    for (int64_t j = 0; j < t.cols; ++j) t.q_sum[j] += column_sum[j];
  }
}

// Scores of kRows rows to g_ij n_i n_j in bfloat16: along the columns, and in pairs of rows.
template <bool kColumns, bool kEdge>
MMSSL_INLINE void weigh_rows(const Bf16Tile& t, int64_t i0, int64_t cols, const float* score,
                             bf16* g, uint32_t* g_pairs) {
  constexpr Halves interleave = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const Exp2<float, kLanes, RoughExp2Table> exp2;
  for (int64_t r0 = 0; r0 < kRows; r0 += 4) {
    V p[4], p_weight[4], scale[4];  // kept in registers, where a store to g could change memory
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const int64_t i = i0 + r0 + r;
      p[r] = V{} + t.p_inverse[i];
      p_weight[r] = p[r] * t.p_weight[i];
      scale[r] = p[r] * t.scale;
    }
    for (int64_t j = 0; j < cols; j += kLanes) {
      const V q = load<float, kLanes>(t.q_inverse + j);
      V q_weight{};
      if constexpr (kColumns) q_weight = load<float, kLanes>(t.q_weight + j) * q;
      V y[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const int64_t i = i0 + r0 + r;
        const V s = load<float, kLanes>(score + (r0 + r) * kMaxChunk + j) * q;
        const V e = exp2(s * scale[r] + t.shift);
        if constexpr (kColumns) {
          y[r] = e * (q * p_weight[r] + q_weight * p[r]);
        } else {
          y[r] = e * (q * p_weight[r]);
        }
        if constexpr (kEdge) {
          y[r] = counted<float, kLanes, false>(y[r], i, j, t.rows, t.cols, t.same_rows);
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < 4; r += 2) {
        const Halves both = narrow_two(y[r], y[r + 1]);
        __builtin_memcpy(g + (r0 + r) * kMaxChunk + j, &both, 32);
        __builtin_memcpy(g + (r0 + r + 1) * kMaxChunk + j,
                         reinterpret_cast<const char*>(&both) + 32, 32);
        const Halves pairs = __builtin_shuffle(both, interleave);
        __builtin_memcpy(g_pairs + (r0 + r) / 2 * kMaxChunk + j, &pairs, 64);
      }
    }
  }
}

template <Bf16Unit kUnit, bool kColumns>
MMSSL_INLINE void grad_bf16(const Bf16Tile& t) {
  constexpr bool kAmx = kUnit == Bf16Unit::kAmx;
  alignas(64) float score[kRows * kMaxChunk];
  alignas(64) bf16 g[kRows * kMaxChunk];
  alignas(64) uint32_t g_pairs[kMaxChunk / 2 * kMaxChunk];
  const int64_t cols = round_up(t.cols, kAmx ? kStep : kLanes), rows = round_up(t.rows, 2 * kRows);
  const TileConfig config;
  if constexpr (kAmx) asm volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t i = 0; i < rows; i += kRows) {
    score_rows<kUnit>(t, i, 0, cols, score);
    uint32_t* pairs = g_pairs + i / 2 * kMaxChunk;
    if (some_left_out(t, i, cols)) {
      weigh_rows<kColumns, true>(t, i, cols, score, g, pairs);
    } else {
      weigh_rows<kColumns, false>(t, i, cols, score, g, pairs);
    }
    for (int64_t r = 0; t.own != nullptr && r < kRows && i + r < t.rows; ++r) {
      const int64_t k = t.column(i + r);
      if (k < 0 || k >= t.cols) continue;
      const float s = score[r * kMaxChunk + k] * t.p_inverse[i + r] * t.q_inverse[k];
      const float weight = t.p_weight[i + r] + (kColumns ? t.q_weight[k] : 0.0f);
      t.own[i + r] += std::exp2(s * t.scale + t.shift) * weight;
      g[r * kMaxChunk + k] = bf16{};
      pairs[r / 2 * kMaxChunk + k] &= r % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    }
    if constexpr (kAmx) {
      for (int64_t k = 0; k < t.ld; k += 64) {
        add_tiles(std::min<int64_t>(4, (t.ld - k) / 16), reinterpret_cast<const char*>(g),
                  kMaxChunk * 2, 0, 64, reinterpret_cast<const char*>(t.pairs_q + k), t.ld * 4, 64,
                  t.ld * 64, cols / 32, t.p_grad + i * t.ld + k, t.ld * 4, 16);
      }
    } else {
      const auto* words = reinterpret_cast<const uint32_t*>(g);
      for (int64_t r = 0; r < kRows; r += 4) {
        add_product<WordShape>(words + r * kMaxChunk / 2, kMaxChunk / 2, 1, t.pairs_q, cols / 2,
                               t.p_grad + (i + r) * t.ld, t.ld);
      }
    }
  }
  if (t.q_grad != nullptr) {
    if constexpr (kAmx) {
      for (int64_t k = 0; k < t.ld; k += 64) {
        for (int64_t j = 0; j < t.cols; j += 16) {
          add_tiles(std::min<int64_t>(4, (t.ld - k) / 16),
                    reinterpret_cast<const char*>(t.columns_p + k * t.chunk), t.chunk * 2,
                    t.chunk * 32, 64, reinterpret_cast<const char*>(g_pairs + j), kMaxChunk * 4, 0,
                    kMaxChunk * 64, rows / 32, t.q_grad_t + k * t.chunk + j, t.chunk * 4,
                    t.chunk * 16);
        }
      }
    } else {
      for (int64_t j = 0; j < t.cols; j += 4) {
        add_product<WordShape>(g_pairs + j, 1, kMaxChunk, t.pairs_p, rows / 2,
                               t.q_grad + j * t.ld, t.ld);
      }
    }
  }
  if constexpr (kAmx) asm volatile("tilerelease" ::);
}

template <Bf16Unit kUnit>
MMSSL_TARGET_AVX512 void run_sum(const Bf16Tile& t) {
  t.q_sum != nullptr ? sum_bf16<kUnit, true>(t) : sum_bf16<kUnit, false>(t);
}
template <Bf16Unit kUnit>
MMSSL_TARGET_AVX512 void run_grad(const Bf16Tile& t) {
  t.q_weight != nullptr ? grad_bf16<kUnit, true>(t) : grad_bf16<kUnit, false>(t);
}
#pragma GCC pop_options
#else
template <Bf16Unit kUnit>
void run_sum(const Bf16Tile&) {}
template <Bf16Unit kUnit>
void run_grad(const Bf16Tile&) {}
#endif

}  // namespace

template <class A>
const TileFunctions<A>& tile_functions() {
  return at_level(table_default<A>, table_avx2<A>, table_avx512<A>);
}

template const TileFunctions<float>& tile_functions<float>();
template const TileFunctions<double>& tile_functions<double>();

Bf16Engine::Bf16Engine(const Layout& layout)
    : layout_(layout), depth_(round_up(layout.d, 32) / 2), ld_(round_up(layout.d, 16)) {}

void Bf16Engine::place(Arena& arena, bool gradients) {
  for (int s = 0; s < kSets; ++s) {
    const int64_t rows = layout_.all_rows(s);
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

MMSSL_TARGET_AVX512 void Bf16Engine::pack(int set, int64_t first_row, const bf16* x, int64_t rows,
                                          double* norm) {
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
  bf16_unit() == Bf16Unit::kAmx ? run_sum<Bf16Unit::kAmx>(t) : run_sum<Bf16Unit::kDot>(t);
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
  amx ? run_grad<Bf16Unit::kAmx>(t) : run_grad<Bf16Unit::kDot>(t);
}

MMSSL_TARGET_AVX512 const float* Bf16Engine::normalized(int set, int64_t row, float* out) const {
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
