"""Peak rate of multiply-adds in registers on this machine (gather.py: gathers of rows).

The loop is compiled when it is first asked for (a C++ compiler is needed) and called through
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
    """Return float32 GFLOP/s of multiply-adds in registers, summed over concurrent ``threads``."""
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


if __name__ == "__main__":
    for count in (1, os.cpu_count() or 1):
        print(f"{count} thread(s): {fma_gflop_s(count):.0f} GFLOP/s float32")
