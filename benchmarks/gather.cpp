// The least that a sparse product with 64 float columns does: gather the rows its edges name and read
// the index, and write the result. Compiled and called by gather.py.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kWidth = 64;            // floats of a row: 256 bytes, 4 cache lines
constexpr int64_t kChunkEdges = 2048;  // what a thread takes at a time
constexpr int64_t kChunkRows = 512;

template <int kBytes>
struct Of {
  typedef float type __attribute__((vector_size(kBytes)));
};

struct Direction {
  const float* x;         // (columns, 64)
  const int64_t* rowptr;  // (rows + 1)
  const int32_t* col;     // (edges)
  int64_t rows, edges;
  float* y;  // (rows, 64)
};

template <int kBytes, int kAhead>
__attribute__((always_inline)) inline void add_row(const Direction& d, int64_t e,
                                                   typename Of<kBytes>::type* sum) {
  constexpr int kParts = 4 * kWidth / kBytes;
  if (kAhead > 0) {
    const int64_t ahead = e + kAhead < d.edges ? e + kAhead : d.edges - 1;
    const char* next = reinterpret_cast<const char*>(d.x + kWidth * int64_t(d.col[ahead]));
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) __builtin_prefetch(next + 64 * line);
  }
  const float* row = d.x + kWidth * int64_t(d.col[e]);
#pragma GCC unroll 16
  for (int i = 0; i < kParts; ++i) {
    typename Of<kBytes>::type part;
    std::memcpy(&part, row + i * (kBytes / 4), kBytes);
    sum[i] += part;
  }
}

// Adds up the rows of edges [begin, end), into kSums independent sums in turn.
template <int kBytes, int kAhead, int kSums>
__attribute__((always_inline)) inline float sum_edges(const Direction& d, int64_t begin,
                                                      int64_t end) {
  constexpr int kParts = 4 * kWidth / kBytes;
  typename Of<kBytes>::type sum[kSums][kParts] = {};
  int64_t e = begin;
  for (; e + kSums <= end; e += kSums) {
#pragma GCC unroll 2
    for (int s = 0; s < kSums; ++s) add_row<kBytes, kAhead>(d, e + s, sum[s]);
  }
  for (; e < end; ++e) add_row<kBytes, kAhead>(d, e, sum[0]);
  float total = 0;
  for (auto& parts : sum) {
    for (auto& part : parts) total += part[0];
  }
  return total;
}

// The same by rows of the result, a fresh sum for each, as a product must.
template <int kBytes, int kAhead>
__attribute__((always_inline)) inline float sum_rows(const Direction& d, int64_t begin,
                                                     int64_t end) {
  constexpr int kParts = 4 * kWidth / kBytes;
  typename Of<kBytes>::type total[kParts] = {};
  for (int64_t row = begin; row < end; ++row) {
    typename Of<kBytes>::type sum[kParts] = {};
    for (int64_t e = d.rowptr[row]; e < d.rowptr[row + 1]; ++e) add_row<kBytes, kAhead>(d, e, sum);
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) total[i] += sum[i];
  }
  float out = 0;
  for (auto& part : total) out += part[0];
  return out;
}

// Variant 0-4: prefetch 0, 8, 16, 32, 48 edges ahead, one sum; 5-9: two sums; 10-12: by rows, 16, 32
// and 48.
constexpr int kVariants = 13, kFirstByRow = 10;

template <int kBytes>
__attribute__((always_inline)) inline float chunk(int variant, const Direction& d, int64_t begin,
                                                  int64_t end) {
  switch (variant) {
    case 0: return sum_edges<kBytes, 0, 1>(d, begin, end);
    case 1: return sum_edges<kBytes, 8, 1>(d, begin, end);
    case 2: return sum_edges<kBytes, 16, 1>(d, begin, end);
    case 3: return sum_edges<kBytes, 32, 1>(d, begin, end);
    case 4: return sum_edges<kBytes, 48, 1>(d, begin, end);
    case 5: return sum_edges<kBytes, 0, 2>(d, begin, end);
    case 6: return sum_edges<kBytes, 8, 2>(d, begin, end);
    case 7: return sum_edges<kBytes, 16, 2>(d, begin, end);
    case 8: return sum_edges<kBytes, 32, 2>(d, begin, end);
    case 9: return sum_edges<kBytes, 48, 2>(d, begin, end);
    case 10: return sum_rows<kBytes, 16>(d, begin, end);
    case 11: return sum_rows<kBytes, 32>(d, begin, end);
    default: return sum_rows<kBytes, 48>(d, begin, end);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512"))) float wide(int v, const Direction& d,
                                                                      int64_t b, int64_t e) {
  return chunk<64>(v, d, b, e);
}
__attribute__((target("avx2"))) float middle(int v, const Direction& d, int64_t b, int64_t e) {
  return chunk<32>(v, d, b, e);
}
#endif

float gather(int v, const Direction& d, int64_t b, int64_t e) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return wide(v, d, b, e);
  if (__builtin_cpu_supports("avx2")) return middle(v, d, b, e);
#endif
  return chunk<16>(v, d, b, e);
}

// Writes rows [begin, end); streaming stores go past the caches.
void write(const Direction& d, int64_t begin, int64_t end, bool streaming) {
  float* p = d.y + kWidth * begin;
  float* stop = d.y + kWidth * end;
#if defined(__x86_64__)
  const __m128 v = _mm_set1_ps(1.0f);
  if (streaming && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
    for (; p < stop; p += 4) _mm_stream_ps(p, v);
    _mm_sfence();
    return;
  }
  for (; p < stop; p += 4) _mm_storeu_ps(p, v);
#else
  for (; p < stop; ++p) *p = 1.0f;
#endif
}

}  // namespace

extern "C" int gather_variants() { return kVariants; }

// One pass: forward gather, forward write, backward gather, backward write, each over all threads.
// seconds[0] and [1]: the gathers and the writes, from the first thread's start to the last's end.
extern "C" void gather_pass(const Direction* directions, int variant, int streaming, int threads,
                            double* seconds, float* sink) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int64_t> next[4] = {};
  std::atomic<int> arrived{0};
  Clock::time_point mark[5];
  std::vector<float> sums(threads * 16);
  const auto meet = [&](int phase) {
    if (arrived.fetch_add(1) + 1 == threads * (phase + 1)) mark[phase] = Clock::now();
    for (int spins = 0; arrived.load() < threads * (phase + 1); ++spins) {
      if (spins > 100000) std::this_thread::yield();  // fewer cores than threads
    }
  };
  const auto work = [&](int thread) {
    meet(0);
    for (int phase = 0; phase < 4; ++phase) {
      const Direction& d = directions[phase / 2];
      const bool by_row = phase % 2 == 1 || variant >= kFirstByRow;
      const int64_t size = by_row ? d.rows : d.edges, step = by_row ? kChunkRows : kChunkEdges;
      for (int64_t begin; (begin = next[phase].fetch_add(step)) < size;) {
        const int64_t end = begin + step < size ? begin + step : size;
        if (phase % 2 == 0) {
          sums[thread * 16] += gather(variant, d, begin, end);
        } else {
          write(d, begin, end, streaming != 0);
        }
      }
      meet(phase + 1);
    }
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
  work(0);
  for (auto& thread : pool) thread.join();
  const auto took = [&](int phase) {
    return std::chrono::duration<double>(mark[phase + 1] - mark[phase]).count();
  };
  seconds[0] = took(0) + took(2);
  seconds[1] = took(1) + took(3);
  for (float sum : sums) *sink += sum;
}
