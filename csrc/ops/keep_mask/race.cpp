// keep_mask on several threads at once; see tsan/race.cpp.
#include "ops/keep_mask/keep_mask.h"
#include "tsan/race.h"

namespace mmssl::race {
namespace {

const Register registered("keep_mask", [](const Parallel& pool) {
  std::vector<uint8_t> keep((1 << 18) + 7);
  cpu::keep_mask(42, 0, keep.data(), int64_t(keep.size()), pool);
  return bytes_of(keep);
});

}  // namespace
}  // namespace mmssl::race
