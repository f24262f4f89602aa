// Shared by the race tests of the ops. Each ops/<op>/race.cpp registers its kernels, so that an op
// is added without an edit elsewhere; race.cpp runs them all.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/parallel.h"
#include "emu/numbers.h"

namespace mmssl::race {

using Bytes = std::vector<char>;
// Runs a kernel on fixed inputs and returns its results.
using Kernel = std::function<Bytes(const Parallel&)>;

struct Case {
  std::string name;
  Kernel run;
};
std::vector<Case>& cases();

struct Register {
  Register(const char* name, Kernel run) { cases().push_back({name, std::move(run)}); }
  // The same for every dtype: run(pool, storage value, sum value).
  template <class Run>
  static bool for_each_dtype(const std::string& name, const Run& run) {
    cases().push_back({name + " float32", [=](auto& pool) { return run(pool, float{}, float{}); }});
    cases().push_back({name + " bfloat16", [=](auto& pool) { return run(pool, bf16{}, float{}); }});
    cases().push_back({name + " float64", [=](auto& pool) { return run(pool, double{}, double{}); }});
    return true;
  }
};

template <class T>
std::vector<T> numbers(int64_t count, uint32_t seed = 1) {
  std::mt19937 random(seed);
  return test::normal<T>(count, random);
}

inline std::vector<int64_t> ids(int64_t count, int64_t limit, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> out(count);
  for (int64_t& v : out) v = random() % limit;
  return out;
}

// A (rows, columns) matrix whose row 0 is long enough to be shared between tasks.
struct Matrix {
  Matrix(int64_t rows, int64_t columns_, int64_t degree, int64_t hub) : columns(columns_) {
    std::mt19937 random(7);
    rowptr.push_back(0);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t count = r == 0 ? hub : degree;
      for (int64_t e = 0; e < count; ++e) col.push_back(int32_t(random() % columns));
      std::sort(col.end() - count, col.end());
      rowptr.push_back(int64_t(col.size()));
    }
  }
  int64_t columns;
  std::vector<int64_t> rowptr;
  std::vector<int32_t> col;
};

// The bytes of all results, to be compared with those that one thread writes.
template <class... Results>
Bytes bytes_of(const Results&... results) {
  Bytes out;
  auto add = [&](const auto& values) {
    const char* first = reinterpret_cast<const char*>(values.data());
    out.insert(out.end(), first, first + values.size() * sizeof(values[0]));
  };
  (add(results), ...);
  return out;
}

}  // namespace mmssl::race
