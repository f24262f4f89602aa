// Numbers of any stored type as doubles and back, for the tests of kernels.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

#include "common/bf16.h"

namespace mmssl::test {

inline double as_double(double v) { return v; }
inline double as_double(bf16 v) { return to_float(v); }
inline void assign(double v, double& out) { out = v; }
inline void assign(double v, float& out) { out = float(v); }
inline void assign(double v, bf16& out) { out = to_bf16(float(v)); }

// Draws from a normal distribution, from the state of the generator on.
template <class T>
std::vector<T> normal(int64_t count, std::mt19937& random, double deviation = 1) {
  std::normal_distribution<double> distribution(0, deviation);
  std::vector<T> out(count);
  for (T& v : out) assign(distribution(random), v);
  return out;
}

}  // namespace mmssl::test
