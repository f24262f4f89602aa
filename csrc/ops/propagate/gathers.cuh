// How the kernels of this folder spread rows of numbers over lanes. Included by its .cu files.
#pragma once
#include "common/cuda_kernel.h"

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda {
namespace {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
  constexpr int operator()() const { return kValue; }
};

template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T v[kVec];
};

template <class T, int kVec>
__device__ __forceinline__ Pack<T, kVec> load(const T* p) {
  return *reinterpret_cast<const Pack<T, kVec>*>(p);
}

// Distributes a row of d numbers over lanes: 16-byte loads where every row starts on a multiple of
// 16 bytes, and as many lanes as a row fills, so that short rows share a warp. A row that fills no number
// of lanes well, such as one of 65 numbers, is cut into parts for fewer lanes, of which less than an
// eighth is idle: neighboring parts are in one warp and read the same lines of memory.
struct Layout {
  int vec, lanes;
  bool operator==(const Layout&) const = default;
};

template <class T>
Layout layout_of(int64_t d, bool aligned) {
  constexpr int kWide = 16 / sizeof(T);
  const int vec = aligned && d % kWide == 0 ? kWide : 1;
  int lanes = 4;
  while (lanes < 32 && int64_t(lanes) * vec < d) lanes *= 2;
  const auto idle = [&] { return ceil_div(d, int64_t(lanes) * vec) * lanes * vec - d; };
  while (lanes > 4 && idle() * 8 > d) lanes /= 2;
  return {vec, lanes};
}

// Calls f(kVec, kLanes) as constants.
template <class T, class F>
void choose(Layout layout, const F& f) {
  const auto with_lanes = [&](auto vec) {
    switch (layout.lanes) {
      case 4:
        return f(vec, Constant<4>{});
      case 8:
        return f(vec, Constant<8>{});
      case 16:
        return f(vec, Constant<16>{});
      default:
        return f(vec, Constant<32>{});
    }
  };
  if (layout.vec > 1) {
    with_lanes(Constant<16 / sizeof(T)>{});
  } else {
    with_lanes(Constant<1>{});
  }
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace
}  // namespace mmssl::cuda
#endif
