// exp2 of a vector of numbers in a known range.
#pragma once
#include <array>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "common/simd.h"

namespace mmssl::cpu {

// The build disables contraction everywhere else; here a * b + c must be one instruction.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// Coefficients of 2^f on [-1/2, 1/2], highest power first. float: least maximum relative error, by
// Lawson's weights; double: Taylor, the first term left out is 2e-17.
template <class A>
struct Exp2Table;
template <>
struct Exp2Table<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^(mantissa bits)
  static constexpr float kC[] = {0x1.41d334p-13f, 0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f,
                                 0x1.ebfbdap-3f,  0x1.62e430p-1f,  1.0f};
};
template <>
struct Exp2Table<double> {
  static constexpr double kMagic = 6755399441055744.0;
  static constexpr std::array<double, 14> kC = [] {
    std::array<double, 14> c{};
    c[13] = 1;
    for (int k = 1; k < 14; ++k) c[13 - k] = c[14 - k] * 0.69314718055994530942 / k;
    return c;
  }();
};

// Relative error 3e-6, for results that are rounded to bfloat16 anyway.
struct RoughExp2Table {
  static constexpr float kMagic = Exp2Table<float>::kMagic;
  static constexpr float kC[] = {0x1.3997d6p-7f, 0x1.ca1444p-5f, 0x1.ec06dap-3f, 0x1.62e0dcp-1f,
                                 0x1.ffffe8p-1f};
};

// exp2(x) for x in [-126, 127] (double: [-1022, 1023]), relative error 8e-8 (2e-16). Constructed
// where it is used, and opaque to the compiler: constants that it hoists would occupy registers
// during the products, which need all of them.
template <class A, int kLanes, class Table = Exp2Table<A>>
struct Exp2 {
  using V = Vec<A, kLanes>;
  using VBits = Vec<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>, kLanes>;

  MMSSL_INLINE Exp2() : c(std::data(Table::kC)) { asm volatile("" : "+r"(c)); }

  MMSSL_INLINE V operator()(V x) const {
    constexpr int kTerms = std::size(Table::kC);
    const V t = x + Table::kMagic;  // the low bits of t now hold round(x)
    const V f = x - (t - Table::kMagic);
    V y = V{} + c[0];
#pragma GCC unroll 16
    for (int k = 1; k < kTerms; ++k) y = y * f + c[k];
    const VBits bits =
        reinterpret_cast<VBits>(y) + (reinterpret_cast<VBits>(t) << (sizeof(A) == 4 ? 23 : 52));
    return reinterpret_cast<V>(bits);
  }

  // exp2(s * scale - shift), from the lowest normal number up. The product is rounded on its own,
  // so that the largest entry of a row, whose product is the shift, gives exactly one.
  MMSSL_INLINE V shifted(V s, A scale, V shift) const {
    V product = s * scale;
    asm("" : "+m"(product));  // no contraction past this
    const V x = product - shift;
    const V floor = V{} + (sizeof(A) == 4 ? A(-126) : A(-1022));
    return operator()(x < floor ? floor : x);  // a NaN stays one
  }

  const A* c;
};

#pragma GCC pop_options

}  // namespace mmssl::cpu
