// Twins of tensor-core instructions, from the tables of the PTX manual. Included by
// common/tensor_core.cuh.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emu/cuda_emu.h"

namespace emu {

// What the lanes of each warp hand to each other. Two sets take turns, so that one barrier per
// instruction suffices: a lane writes a set again only after all lanes have passed the next one.
struct Handed {
  uint32_t words[6];
  const void* address;
};
struct Warp {
  Handed lanes[2][32];
};
inline Warp& warp() {
  static Warp warps[32];
  return warps[block()->current / 32];
}

// Hands `own` to the other lanes and returns what all of them handed.
inline const Handed* hand_over(const Handed& own) {
  Fiber& fiber = block()->fibers[block()->current];
  Handed* lanes = warp().lanes[fiber.turn];
  fiber.turn ^= 1;
  lanes[block()->current % 32] = own;
  wait(State::kAtWarpBarrier, true);
  return lanes;
}

// To float32 by cutting off, as tensor cores are known to do.
inline float toward_zero(double v) {
  const float nearest = float(v);
  return std::abs(double(nearest)) > std::abs(v) ? std::nextafter(nearest, 0.0f) : nearest;
}

// Most of an emulation is spent here, on the emulator's own memory: sanitizers are off.
template <int kPerWord, class Get>
__attribute__((noinline, no_sanitize("address", "thread", "undefined"))) void multiply_add(
    float (&d)[4], const Handed* lanes, unsigned lane, Get get) {
  const unsigned row = lane / 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int part = 0; part < 2; ++part) {  // registers 0, 1 and 2, 3 of a; 0 and 1 of b
      for (unsigned group = 0; group < 4; ++group) {
        for (int n = 0; n < kPerWord; ++n) {
          sum += double(get(lanes[row * 4 + group].words[part * 2 + i / 2], n)) *
                 double(get(lanes[column * 4 + group].words[4 + part], n));
        }
      }
    }
    d[i] = toward_zero(sum);
  }
}

// d += a b for an m16n8 tile with kPerWord entries per 32-bit register: "Matrix Fragments for
// mma.m16n8k16 / m16n8k8".
template <int kPerWord, class Get>
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Get get) {
  const races::Unwatched unwatched;
  const Handed* lanes = hand_over({{a[0], a[1], a[2], a[3], b[0], b[1]}, nullptr});
  multiply_add<kPerWord>(d, lanes, block()->current % 32, get);
}

// ldmatrix.x4: "Warp-level matrix load instruction: ldmatrix".
template <bool kTransposed>
inline void ldmatrix(uint32_t (&words)[4], const void* row) {
  const uint16_t* rows[4][8];
  const unsigned lane = block()->current % 32;
  {
    const races::Unwatched unwatched;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::runtime_error("emulator: ldmatrix");
    const Handed* lanes = hand_over({{}, row});
    for (unsigned n = 0; n < 32; ++n) {
      rows[n / 8][n % 8] = static_cast<const uint16_t*>(lanes[n].address);
    }
  }
  for (int tile = 0; tile < 4; ++tile) {  // the reads of shared memory are this lane's
    const unsigned i = lane / 4, k = lane % 4 * 2;
    const uint16_t low = kTransposed ? rows[tile][k][i] : rows[tile][i][k];
    const uint16_t high = kTransposed ? rows[tile][k + 1][i] : rows[tile][i][k + 1];
    words[tile] = uint32_t(low) | uint32_t(high) << 16;
  }
}

// cp.async arrives as late as it may. Until then its target holds NaN, written at once: so a thread
// that reads too early, or has not finished reading what was there, is noticed.
inline void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16) {
    throw std::runtime_error("emulator: cp.async of an address that is not a multiple of 16");
  }
  std::memset(shared, 0xff, 16);
  const races::Unwatched unwatched;
  block()->fibers[block()->current].copies.push_back({shared, global, 0});
}
inline void commit_copies() {
  const races::Unwatched unwatched;
  for (Copy& copy : block()->fibers[block()->current].copies) ++copy.age;
}
inline void wait_for_copies(int pending) {
  std::vector<Copy> due;
  {
    const races::Unwatched unwatched;
    auto& copies = block()->fibers[block()->current].copies;
    for (const Copy& copy : copies) {
      if (copy.age > pending) due.push_back(copy);
    }
    std::erase_if(copies, [&](const Copy& copy) { return copy.age > pending; });
  }
  for (const Copy& copy : due) std::memcpy(copy.to, copy.from, 16);
}

inline float ex2_ftz(float x) {
  const float y = std::exp2(std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace emu
