#include "cpu/simd.h"

#include <cstdlib>
#include <cstring>

namespace mmssl::cpu {
namespace {

SimdLevel detect() {
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
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (cap == nullptr) return best;
  if (std::strcmp(cap, "default") == 0) return SimdLevel::kDefault;
  if (std::strcmp(cap, "avx2") == 0 && best > SimdLevel::kAvx2) return SimdLevel::kAvx2;
  return best;
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = detect();
  return level;
}

const char* simd_level_name() {
  static const char* const names[] = {"default", "avx2", "avx512"};
  return names[static_cast<int>(simd_level())];
}

}  // namespace mmssl::cpu
