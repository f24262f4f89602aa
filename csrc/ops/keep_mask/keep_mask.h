// The mask of dropout from a counter: element 4 w + j keeps where the j-th 16 bits of word w,
// signed, are at least the limit. Word w is the w-th output of SplitMix64 (Steele, Lea, Flood:
// "Fast splittable pseudorandom number generators", OOPSLA 2014) after the seed, so any part can be
// computed independently, by any number of threads.
#pragma once
#include <cstdint>

#include "common/parallel.h"

namespace mmssl::cpu {

// keep (n) of 0 and 1.
void keep_mask(uint64_t seed, int16_t limit, uint8_t* keep, int64_t n, const Parallel& pool);

}  // namespace mmssl::cpu
