// torch's thread pool as the kernels want it.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"

namespace mmssl {

inline Parallel torch_threads() {
  Parallel pool;
  pool.threads = static_cast<int>(torch::stable::get_num_threads());
  pool.run = [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
    torch::stable::parallel_for(0, count, 1,
                                [&](int64_t begin, int64_t end) { body(begin, end, context); });
  };
  return pool;
}

}  // namespace mmssl
