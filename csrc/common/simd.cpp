#include "common/simd.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmssl::cpu {
namespace {

const char* cap() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  return value == nullptr ? "" : value;
}

SimdLevel detect_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const SimdLevel best = avx512 ? SimdLevel::kAvx512 : avx2 ? SimdLevel::kAvx2 : SimdLevel::kDefault;
#else
  const SimdLevel best = SimdLevel::kDefault;
#endif
  if (std::strcmp(cap(), "default") == 0) return SimdLevel::kDefault;
  if (std::strcmp(cap(), "avx2") == 0 && best > SimdLevel::kAvx2) return SimdLevel::kAvx2;
  return best;
}

#if defined(__x86_64__)
// Whether the processor has AMX-TILE and AMX-BF16, and the operating system grants the tile
// registers.
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Bf16Unit detect_bf16_unit() {
  if (simd_level() != SimdLevel::kAvx512 || !__builtin_cpu_supports("avx512bf16")) {
    return Bf16Unit::kNone;
  }
  if (std::strcmp(cap(), "avx512") == 0) return Bf16Unit::kDot;
  if (has_amx()) return Bf16Unit::kAmx;
  return __builtin_cpu_is("amd") ? Bf16Unit::kDot : Bf16Unit::kNone;
}
#else
Bf16Unit detect_bf16_unit() { return Bf16Unit::kNone; }
#endif

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = detect_level();
  return level;
}

Bf16Unit bf16_unit() {
  static const Bf16Unit unit = detect_bf16_unit();
  return unit;
}

const char* simd_level_name() {
  static const char* const names[] = {"default", "avx2", "avx512"};
  return names[static_cast<int>(simd_level())];
}

}  // namespace mmssl::cpu
