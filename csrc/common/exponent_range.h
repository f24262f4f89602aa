// How the exponentials of cosines are kept in the range of a type without a pass over the data.
#pragma once
#include "common/bf16.h"

namespace mmssl {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// exp(s / t) is computed as exp2(scale * s + shift). Cosines are bounded, so one shift keeps every
// term of every row well inside the range of A, unless the temperature is too low (fixed = false).
template <class A>
struct Range {
  double scale, shift;
  bool fixed;
  MMSSL_HD explicit Range(double temperature) {
    constexpr double lowest = sizeof(A) == 4 ? -110 : -900, highest = sizeof(A) == 4 ? 60 : 600;
    scale = kLog2E / temperature;
    fixed = 2 * scale <= highest - lowest;
    shift = (2 * scale + lowest > 0 ? 2 * scale + lowest : 0.0) - scale;
  }
};

}  // namespace mmssl
