"""What this machine can do at most: multiply-adds kept in registers, and gathers of whole rows.

The loops are compiled when they are first asked for (a C++ compiler is needed) and called through
ctypes, so that the package itself carries no benchmark code.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = r"""
#include <chrono>
template <int kBytes> struct Of { typedef float type __attribute__((vector_size(kBytes))); };
// 24 (12) independent sums cover the latency with 32 (16) registers; their FLOP per second.
template <int kBytes, int kSums>
__attribute__((always_inline)) inline double rate(double seconds, float* sink) {
  using V = typename Of<kBytes>::type;
  V sum[kSums], a = V{} + 0.999f, b = V{} + 1e-3f;
  for (V& s : sum) s = V{};
  double flop = 0, elapsed = 0;
  const auto start = std::chrono::steady_clock::now();
  while (elapsed < seconds) {
    for (int n = 0; n < 100000; ++n) {
      _Pragma("GCC unroll 24") for (int i = 0; i < kSums; ++i) sum[i] = sum[i] * a + b;
    }
    flop += 2.0 * 100000 * kSums * (kBytes / 4);
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  for (V& s : sum) *sink += s[0];
  return flop / elapsed;
}
#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512")))
static double wide(double s, float* sink) { return rate<64, 24>(s, sink); }
__attribute__((target("avx2,fma")))
static double middle(double s, float* sink) { return rate<32, 12>(s, sink); }
#endif
extern "C" double fma_rate(double seconds, float* sink) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return wide(seconds, sink);
  if (__builtin_cpu_supports("fma")) return middle(seconds, sink);
#endif
  return rate<16, 12>(seconds, sink);
}
"""


_GATHER = r"""
#include <cstdint>
#include <thread>
#include <vector>
#include <chrono>
#include <cstring>
template <int kBytes> struct Of { typedef float type __attribute__((vector_size(kBytes))); };
// Adds up the 64-float rows that col names, four (eight) registers wide, with rows prefetched.
template <int kBytes>
__attribute__((always_inline)) inline float sum_rows(const float* x, const int32_t* col,
                                                     int64_t begin, int64_t end, int64_t last) {
  using V = typename Of<kBytes>::type;
  constexpr int kParts = 256 / kBytes;
  V sum[kParts] = {};
  for (int64_t e = begin; e < end; ++e) {
    const int64_t ahead = e + 16 < last ? e + 16 : last;
    const char* next = reinterpret_cast<const char*>(x + 64 * int64_t(col[ahead]));
    for (int line = 0; line < 4; ++line) __builtin_prefetch(next + 64 * line);
    const float* row = x + 64 * int64_t(col[e]);
    for (int i = 0; i < kParts; ++i) {
      V part;
      std::memcpy(&part, row + i * (kBytes / 4), kBytes);
      sum[i] += part;
    }
  }
  float total = 0;
  for (const V& part : sum) total += part[0];
  return total;
}
#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512")))
static float wide(const float* x, const int32_t* c, int64_t b, int64_t e, int64_t l) {
  return sum_rows<64>(x, c, b, e, l);
}
__attribute__((target("avx2")))
static float middle(const float* x, const int32_t* c, int64_t b, int64_t e, int64_t l) {
  return sum_rows<32>(x, c, b, e, l);
}
#endif
static float any(const float* x, const int32_t* c, int64_t b, int64_t e, int64_t l) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return wide(x, c, b, e, l);
  if (__builtin_cpu_supports("avx2")) return middle(x, c, b, e, l);
#endif
  return sum_rows<16>(x, c, b, e, l);
}
// Seconds of one pass: the slowest thread's, without the start of the threads.
extern "C" double gather_seconds(const float* x, const int32_t* col, int64_t n, int threads,
                                 float* sink) {
  std::vector<double> took(threads);
  std::vector<float> sums(threads);
  auto work = [&](int t) {
    const int64_t begin = n * t / threads, end = n * (t + 1) / threads;
    const auto start = std::chrono::steady_clock::now();
    sums[t] = any(x, col, begin, end, n - 1);
    took[t] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, t);
  double slowest = 0;
  for (int t = 0; t < threads; ++t) {
    pool[t].join();
    *sink += sums[t];
    if (took[t] > slowest) slowest = took[t];
  }
  return slowest;
}
"""


def _compiled(text: str, name: str) -> ctypes._NamedFuncPointer:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(text)
        compiler = os.environ.get("CXX", "g++")
        flags = ["-O2", "-std=c++17", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC"]
        command = [compiler, *flags, "-pthread", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        function = getattr(ctypes.CDLL(str(library)), name)
    function.restype = ctypes.c_double
    return function


@functools.cache
def _fma_rate() -> ctypes._NamedFuncPointer:
    function = _compiled(_SOURCE, "fma_rate")
    function.argtypes = [ctypes.c_double, ctypes.POINTER(ctypes.c_float)]
    return function


def fma_gflop_s(threads: int, seconds: float = 0.05) -> float:
    """float32 GFLOP/s of multiply-adds in registers, summed over ``threads`` at once."""
    function = _fma_rate()
    rates = [0.0] * threads

    def run(n: int) -> None:
        rates[n] = function(seconds, ctypes.byref(ctypes.c_float()))

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates) / 1e9


@functools.cache
def _gather() -> ctypes._NamedFuncPointer:
    function = _compiled(_GATHER, "gather_seconds")
    table, index = ctypes.c_void_p, ctypes.c_void_p
    sink = ctypes.POINTER(ctypes.c_float)
    function.argtypes = [table, index, ctypes.c_int64, ctypes.c_int, sink]
    return function


def gather_seconds(x: Tensor, col: Tensor) -> float:
    """Seconds to read and add up the rows of (C, 64) float32 ``x`` that (E,) int32 ``col`` names.

    The least a sparse product can do; both must be contiguous and on the CPU.
    """
    if x.shape[1] != 64 or x.dtype != torch.float32 or col.dtype != torch.int32:
        raise ValueError(f"expected (C, 64) float32 and int32, got {x.shape} {x.dtype} {col.dtype}")
    if col.numel() == 0:
        return 0.0
    threads, sink = torch.get_num_threads(), ctypes.byref(ctypes.c_float())
    return float(_gather()(x.data_ptr(), col.data_ptr(), col.numel(), threads, sink))


if __name__ == "__main__":
    for count in (1, os.cpu_count() or 1):
        print(f"{count} thread(s): {fma_gflop_s(count):.0f} GFLOP/s float32")
    for rows in (10_000, 1_000_000):
        table, index = torch.randn(rows, 64), torch.randint(rows, (2_000_000,), dtype=torch.int32)
        seconds = min(gather_seconds(table, index) for _ in range(3))
        print(f"gather from {rows} rows of 256 B: {260 * index.numel() / seconds / 1e9:.0f} GB/s")
