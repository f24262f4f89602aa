// bfloat16 as its 16 bits, on the host and on the device, without a torch or CUDA header.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MMSSL_HD __host__ __device__ __forceinline__
#else
#define MMSSL_HD inline
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

// Round to nearest even; every NaN becomes the quiet one.
MMSSL_HD bf16 to_bf16(float v) {
  if (v != v) return {0x7fc0};
  uint32_t word;
  memcpy(&word, &v, sizeof(word));
  return {uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}

}  // namespace mmssl
