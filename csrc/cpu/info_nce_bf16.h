// The engine for bfloat16 inputs on processors that multiply bfloat16: AVX512-BF16 or AMX.
//
// Scores are exact products of the inputs, summed in float32, so they are as good as float32 ones.
// Rows are scaled by a power of two only (exact), to a norm in [1, 2); the rest of the normalisation
// is applied to the scores. In backward, g_ij n_i n_j is rounded to bfloat16 for the second product.
#pragma once
#include "cpu/info_nce_engine.h"

namespace mmssl::cpu {

enum class Bf16Unit { kNone, kDot, kAmx };

// kAmx where there are tiles, kDot where the dot product is twice as fast as float32 (AMD) or
// ATEN_CPU_CAPABILITY=avx512 rules out more, else kNone: then float32 is the faster way.
Bf16Unit bf16_unit();

// What a tile needs beside Tile<float>. Words are pairs of bfloat16: `words_p` (rows, k / 2) along
// the features, `pairs_*` (rows / 2, ld) two rows interleaved, `panels_q` panels of q along the
// features, `columns_p` (ld, chunk) bfloat16 transposed.
struct Bf16Tile : Tile<float> {
  const uint32_t *words_p, *panels_q, *pairs_p, *pairs_q;
  const bf16* columns_p;
  const float *p_inverse, *q_inverse;  // 1 / norm of the scaled rows
  int64_t depth;                       // words per row
  int64_t chunk;
  float* q_grad_t;  // kAmx writes the gradient of Q transposed, (ld, chunk)
};

constexpr int64_t kBf16Panel = 48;  // columns of a panel: three vectors or AMX tiles

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void run_bf16_sum(const Bf16Tile& t);
void run_bf16_grad(const Bf16Tile& t);

class Bf16Engine {
 public:
  explicit Bf16Engine(const Layout& layout);
  void place(Arena& arena, bool gradients);
  void pack(int set, int64_t first_row, const bf16* x, int64_t rows, double* norm);
  void max(const Tile<float>&, int, int64_t, int, int64_t) const {}  // kFixed only
  void sum(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;
  void grad(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;
  const float* normalised(int set, int64_t row, float* out) const;
  float* gradient(int set, int64_t row, float* out) const;

 private:
  Bf16Tile tile(const Tile<float>& t, int p, int64_t p_row, int q, int64_t q_row) const;

  Layout layout_;
  int64_t depth_, ld_;
  uint32_t *words_[kSets] = {}, *panels_[kSets] = {}, *pairs_[kSets] = {};
  bf16* columns_[kSets] = {};
  float *inverse_[kSets] = {}, *grads_[kSets] = {}, *grads_t_[kSets] = {};
};

}  // namespace mmssl::cpu
