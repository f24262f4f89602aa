// One source for nvcc and for the CPU emulator of the tests.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#define MMSSL_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#else
#include "emu/cuda_emu.h"
#define MMSSL_LAUNCH(kernel, grid, block, stream, ...) \
  emu::launch(grid, block, stream, [&] { kernel(__VA_ARGS__); })
#endif
