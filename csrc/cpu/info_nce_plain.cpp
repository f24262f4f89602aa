// The float32 and float64 tiles, compiled once per SIMD level.
#include "cpu/info_nce_engine.h"
#include "cpu/info_nce_rows.h"

namespace mmssl::cpu {
namespace {

// Register tiles that fill the register file without spilling: 32 registers with AVX-512, else 16.
template <class A>
using Default = Shape<A, 16 / sizeof(A), 4, 3, 6, 2>;
template <class A>
using Avx2 = Shape<A, 32 / sizeof(A), 4, 3, 6, 2>;
template <class A>
using Avx512 = Shape<A, 64 / sizeof(A), 8, 3, 6, 4>;

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
  target void normalise_##name(const A* x, int64_t rows, int64_t d, int64_t ld, A* z,         \
                               double* norm) {                                                \
    normalise_rows<A, shape<A>::kLanes>(x, rows, d, ld, z, norm);                             \
  }                                                                                           \
  template <class A>                                                                          \
  target void panels_##name(const A* z, int64_t rows, int64_t d, int64_t ld, A* out) {        \
    make_panels<A, shape<A>::kLanes, shape<A>::kPanel>(z, rows, d, ld, out);                  \
  }                                                                                           \
  template <class A>                                                                          \
  target double through_##name(const A* z, const A* other, A weight, A* dz, double norm,      \
                               double scale, int64_t d, A* out) {                             \
    return through_norm<A, shape<A>::kLanes>(z, other, weight, dz, norm, scale, d, out);      \
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
      normalise_##name<A>,                                                                    \
      panels_##name<A>,                                                                       \
      through_##name<A>};
MMSSL_TILES(default, , Default)
MMSSL_TILES(avx2, MMSSL_TARGET_AVX2, Avx2)
MMSSL_TILES(avx512, MMSSL_TARGET_AVX512, Avx512)
#undef MMSSL_TILES
#pragma GCC pop_options

}  // namespace

template <class A>
const TileFunctions<A>& tile_functions() {
  return at_level(table_default<A>, table_avx2<A>, table_avx512<A>);
}

template const TileFunctions<float>& tile_functions<float>();
template const TileFunctions<double>& tile_functions<double>();

}  // namespace mmssl::cpu
