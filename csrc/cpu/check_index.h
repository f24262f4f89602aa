// common/check_index.h at the SIMD level at hand, by several threads where there is enough to look at.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace mmssl::cpu {

// Whether all of n ids lie in [0, limit).
bool ids_in_range(const int32_t* id, int64_t n, int64_t limit, const Parallel& pool);
bool ids_in_range(const int64_t* id, int64_t n, int64_t limit, const Parallel& pool);

// Whether count + 1 pointers start at 0, never fall and end at `total`.
bool rises_from_zero(const int64_t* pointer, int64_t count, int64_t total, const Parallel& pool);

}  // namespace mmssl::cpu
