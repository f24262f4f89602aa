#include "cpu/info_nce_bf16.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>

namespace mmssl::cpu {
namespace {

constexpr int kLanes = 16, kRows = 16;  // of a vector; of a block of scores
constexpr int64_t kPanel = kBf16Panel;
constexpr int64_t kStep = 96;  // with AMX columns are padded to whole panels and whole tile depths
using V = Vec<float, kLanes>;
using Words = Vec<uint32_t, kLanes>;
using Halves = Vec<uint16_t, 2 * kLanes>;

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Instructions as inline assembly: intrinsics can't be inlined into a body shared by two levels.
MMSSL_INLINE V dot_pairs(V sum, Words a, Words b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
MMSSL_INLINE Halves narrow_two(V low, V high) {
  Halves out;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(out) : "v"(low), "v"(high));
  return out;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};
#define MMSSL_LOAD_TILE(number, from, stride)                                          \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #number ::"r"(from), "r"(int64_t(stride)) : "memory")
#define MMSSL_STORE_TILE(number, to, stride)                                           \
  asm volatile("tilestored %%tmm" #number ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define MMSSL_MULTIPLY_TILES(sum, a, b) \
  asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

// c (kR rows, kV vectors) = [c +] a b over `depth` words.
template <int kR, int kV, bool kAdd>
MMSSL_INLINE void multiply_words(const uint32_t* a, int64_t row_step, int64_t k_step,
                                 const uint32_t* b, int64_t ldb, int64_t depth, float* c,
                                 int64_t ldc) {
  V sum[kR][kV] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Words column[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) __builtin_memcpy(&column[v], b + k * ldb + v * kLanes, 64);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Words x = Words{} + a[r * row_step + k * k_step];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] = dot_pairs(sum[r][v], x, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      float* out = c + r * ldc + v * kLanes;
      if constexpr (kAdd) sum[r][v] += load<float, kLanes>(out);
      store<float, kLanes>(out, sum[r][v]);
    }
  }
}

// Four rows of a gradient, all features.
MMSSL_INLINE void add_words(const uint32_t* a, int64_t row_step, int64_t k_step, const uint32_t* b,
                            int64_t depth, float* c, int64_t ld) {
  int64_t k = 0;
  for (; k + 4 * kLanes <= ld; k += 4 * kLanes) {
    multiply_words<4, 4, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
  }
  for (; k < ld; k += kLanes) {
    multiply_words<4, 1, true>(a, row_step, k_step, b + k, ld, depth, c + k, ld);
  }
}

// score (kRows, cols) of the rows from i on, from the column `first` on, the first of a panel.
template <Bf16Unit kUnit>
MMSSL_INLINE void score_rows(const Bf16Tile& t, int64_t i, int64_t first, int64_t cols,
                             float* score) {
  const uint32_t* a = t.words_p + i * t.depth;
  for (int64_t j = first; j < cols; j += kPanel) {
    const uint32_t* b = t.panels_q + j * t.depth;
    if constexpr (kUnit == Bf16Unit::kAmx) {
      asm volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2" ::);
      for (int64_t k = 0; k < t.depth; k += 16) {
        MMSSL_LOAD_TILE(4, a + k, t.depth * 4);
        MMSSL_LOAD_TILE(5, b + k * kPanel, kPanel * 4);
        MMSSL_MULTIPLY_TILES(0, 4, 5);
        MMSSL_LOAD_TILE(5, b + k * kPanel + 16, kPanel * 4);
        MMSSL_MULTIPLY_TILES(1, 4, 5);
        MMSSL_LOAD_TILE(5, b + k * kPanel + 32, kPanel * 4);
        MMSSL_MULTIPLY_TILES(2, 4, 5);
      }
      MMSSL_STORE_TILE(0, score + j, kMaxChunk * 4);
      MMSSL_STORE_TILE(1, score + j + 16, kMaxChunk * 4);
      MMSSL_STORE_TILE(2, score + j + 32, kMaxChunk * 4);
    } else {
      for (int64_t r = 0; r < kRows; r += 8) {
        const uint32_t* rows = a + r * t.depth;
        float* out = score + r * kMaxChunk + j;
        if (cols - j >= kPanel) {
          multiply_words<8, 3, false>(rows, t.depth, 1, b, kPanel, t.depth, out, kMaxChunk);
        } else if (cols - j >= 2 * kLanes) {
          multiply_words<8, 2, false>(rows, t.depth, 1, b, kPanel, t.depth, out, kMaxChunk);
        } else {
          multiply_words<8, 1, false>(rows, t.depth, 1, b, kPanel, t.depth, out, kMaxChunk);
        }
      }
    }
  }
}

MMSSL_INLINE bool some_left_out(const Bf16Tile& t, int64_t i, int64_t cols) {
  return t.same_rows || t.diagonal != nullptr || cols > t.cols || i + kRows > t.rows;
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
  const int64_t cols = round_up(t.cols, kUnit == Bf16Unit::kAmx ? kPanel : kLanes);
  const TileConfig config;
  if constexpr (kUnit == Bf16Unit::kAmx) asm volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t i = 0; i < t.rows; i += kRows) {
    V row_sum[kRows];
    // A chunk with itself: the triangle above the diagonal, for its rows and its columns.
    const int64_t first = t.same_rows ? i / kPanel * kPanel : 0;
    score_rows<kUnit>(t, i, first, cols, score);
    if (some_left_out(t, i, cols)) {
      add_rows<kColumns, true>(t, i, first, cols, score, row_sum, column_sum);
    } else {
      add_rows<kColumns, false>(t, i, first, cols, score, row_sum, column_sum);
    }
    for (int64_t r = 0; r < kRows && i + r < t.rows; ++r) {
      if (t.positive != nullptr) {
        t.positive[i + r] = double(score[r * kMaxChunk + i + r]) * t.p_inverse[i + r] *
                            t.q_inverse[i + r];
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
          y[r] = counted<float, kLanes, false>(y[r], i, j, t.rows, t.cols,
                                               t.same_rows || t.diagonal != nullptr);
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

// c (16 rows of each of up to four tiles, 16 columns each) += a b; a and b step from tile to tile.
MMSSL_INLINE void add_tiles(int64_t tiles, const char* a, int64_t a_stride, int64_t a_next,
                            int64_t a_step, const char* b, int64_t b_stride, int64_t b_next,
                            int64_t b_step, int64_t steps, float* c, int64_t c_stride,
                            int64_t c_next) {
#define MMSSL_EACH(body)                                        \
  body(0) if (tiles > 1) body(1) if (tiles > 2) body(2) if (tiles > 3) body(3)
#define MMSSL_BODY(n) MMSSL_LOAD_TILE(n, c + n * c_next, c_stride);
  MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
  for (int64_t k = 0; k < steps; ++k) {
    if (a_next == 0) MMSSL_LOAD_TILE(4, a + k * a_step, a_stride);
    if (b_next == 0) MMSSL_LOAD_TILE(5, b + k * b_step, b_stride);
#define MMSSL_BODY(n)                                                               \
  {                                                                                 \
    if (a_next != 0) MMSSL_LOAD_TILE(4, a + n * a_next + k * a_step, a_stride);     \
    if (b_next != 0) MMSSL_LOAD_TILE(5, b + n * b_next + k * b_step, b_stride);     \
    MMSSL_MULTIPLY_TILES(n, 4, 5);                                                  \
  }
    MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
  }
#define MMSSL_BODY(n) MMSSL_STORE_TILE(n, c + n * c_next, c_stride);
  MMSSL_EACH(MMSSL_BODY)
#undef MMSSL_BODY
#undef MMSSL_EACH
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
    if (t.diagonal != nullptr) {
      for (int64_t k = i; k < i + kRows && k < t.rows; ++k) {
        const float s = score[(k - i) * kMaxChunk + k] * t.p_inverse[k] * t.q_inverse[k];
        const float weight = t.p_weight[k] + (kColumns ? t.q_weight[k] : 0.0f);
        t.diagonal[k] += std::exp2(s * t.scale + t.shift) * weight;
      }
    }
    uint32_t* pairs = g_pairs + i / 2 * kMaxChunk;
    if (some_left_out(t, i, cols)) {
      weigh_rows<kColumns, true>(t, i, cols, score, g, pairs);
    } else {
      weigh_rows<kColumns, false>(t, i, cols, score, g, pairs);
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
        add_words(words + r * kMaxChunk / 2, kMaxChunk / 2, 1, t.pairs_q, cols / 2,
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
        add_words(g_pairs + j, 1, kMaxChunk, t.pairs_p, rows / 2, t.q_grad + j * t.ld, t.ld);
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

// AMX-TILE and AMX-BF16, and the kernel's leave to use the tile registers.
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Bf16Unit detect() {
  if (simd_level() != SimdLevel::kAvx512 || !__builtin_cpu_supports("avx512bf16")) {
    return Bf16Unit::kNone;
  }
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (cap != nullptr && std::strcmp(cap, "avx512") == 0) return Bf16Unit::kDot;
  if (has_amx()) return Bf16Unit::kAmx;
  return __builtin_cpu_is("amd") ? Bf16Unit::kDot : Bf16Unit::kNone;
}
#else
template <Bf16Unit kUnit>
void run_sum(const Bf16Tile&) {}
template <Bf16Unit kUnit>
void run_grad(const Bf16Tile&) {}
Bf16Unit detect() { return Bf16Unit::kNone; }
#endif

}  // namespace

Bf16Unit bf16_unit() {
  static const Bf16Unit unit = detect();
  return unit;
}

void run_bf16_sum(const Bf16Tile& t) {
  bf16_unit() == Bf16Unit::kAmx ? run_sum<Bf16Unit::kAmx>(t) : run_sum<Bf16Unit::kDot>(t);
}
void run_bf16_grad(const Bf16Tile& t) {
  bf16_unit() == Bf16Unit::kAmx ? run_grad<Bf16Unit::kAmx>(t) : run_grad<Bf16Unit::kDot>(t);
}

}  // namespace mmssl::cpu
