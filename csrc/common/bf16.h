// bfloat16 as its 16 bits, and the conversions between the type that numbers are stored in and the
// type that sums are kept in: on the host and on the device, without a torch or CUDA header.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MMSSL_HD __host__ __device__ __forceinline__
#else
#define MMSSL_HD __attribute__((always_inline)) inline
#endif

namespace mmssl {

struct bf16 {
  uint16_t bits;
};

MMSSL_HD float to_float(bf16 v) {
  const uint32_t word = uint32_t(v.bits) << 16;
  float out;
  memcpy(&out, &word, sizeof(out));
  return out;
}

// Rounds to nearest even; every NaN becomes the quiet one.
MMSSL_HD bf16 to_bf16(float v) {
  if (v != v) return {0x7fc0};
  uint32_t word;
  memcpy(&word, &v, sizeof(word));
  return {uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}

// A stored number in the type that sums are kept in.
MMSSL_HD float widen(float v) { return v; }
MMSSL_HD double widen(double v) { return v; }
MMSSL_HD float widen(bf16 v) { return to_float(v); }

// A sum in the type that it is stored in.
MMSSL_HD void narrow(float v, float& out) { out = v; }
MMSSL_HD void narrow(double v, double& out) { out = v; }
MMSSL_HD void narrow(float v, bf16& out) { out = to_bf16(v); }

}  // namespace mmssl
