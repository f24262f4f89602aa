// Plain threads for work on index arrays, independent of torch's pool.
#pragma once
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace mmssl::host {

// Edges from which a thread is worth its cost; beyond a few threads memory is the limit.
inline constexpr int64_t kEdgesPerThread = 1 << 18;
inline constexpr int64_t kMaxThreads = 8;

inline int64_t num_threads(int64_t edges) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<int64_t>(edges / kEdgesPerThread, 1, std::min(cores, kMaxThreads));
}

// Runs f(0), ..., f(threads - 1), each on a separate thread.
template <class F>
void run(int64_t threads, const F& f) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  for (int64_t t = 1; t < threads; ++t) others.emplace_back([&f, t] { f(t); });
  f(0);
  for (auto& thread : others) thread.join();
}

inline int64_t part(int64_t total, int64_t t, int64_t threads) { return total * t / threads; }

}  // namespace mmssl::host
