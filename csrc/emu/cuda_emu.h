// Runs a subset of CUDA C++ on the CPU, for tests: one fiber per thread, blocks one after another.
//
// Covers indexing and logic: threadIdx and its kin, __syncthreads, warp shuffles and votes, static
// shared memory. It does not show races or memory ordering, and its speed says nothing.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(p, value, bytes);
  return cudaSuccess;
}

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

namespace emu {

struct Index {
  unsigned x = 0;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  State state = State::kReady;
  uint64_t exchanged = 0;  // what the other lanes of the warp may read
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current = 0;  // thread that runs
  Index index, grid;
  const std::function<void()>* body = nullptr;
};

inline Block*& block() {
  static thread_local Block* instance = nullptr;
  return instance;
}

inline void wait(State state) {
  Block* b = block();
  Fiber& fiber = b->fibers[b->current];
  fiber.state = state;
  swapcontext(&fiber.context, &b->scheduler);
}

inline void enter() {
  (*block()->body)();
  wait(State::kDone);
}

// Lets every thread run to its next barrier, then opens the barriers that all have reached.
inline void run_block(Block& b) {
  for (Fiber& fiber : b.fibers) {
    fiber.state = State::kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  const size_t threads = b.fibers.size();
  const auto count = [&](size_t begin, size_t end, State state) {
    return size_t(std::count_if(b.fibers.begin() + begin, b.fibers.begin() + end,
                                [&](const Fiber& fiber) { return fiber.state == state; }));
  };
  const auto open = [&](size_t begin, size_t end, State state) {
    const size_t waiting = count(begin, end, state);
    if (waiting == 0 || waiting + count(begin, end, State::kDone) != end - begin) return false;
    for (size_t i = begin; i < end; ++i) {
      if (b.fibers[i].state == state) b.fibers[i].state = State::kReady;
    }
    return true;
  };
  while (count(0, threads, State::kDone) < threads) {
    bool progress = false;
    for (size_t i = 0; i < threads; ++i) {
      if (b.fibers[i].state != State::kReady) continue;
      b.current = unsigned(i);
      swapcontext(&b.scheduler, &b.fibers[i].context);
      progress = true;
    }
    for (size_t warp = 0; warp < threads; warp += 32) {
      progress |= open(warp, std::min(threads, warp + 32), State::kAtWarpBarrier);
    }
    progress |= open(0, threads, State::kAtBlockBarrier);
    if (!progress) throw std::runtime_error("emulator: a barrier or shuffle that not all reach");
  }
}

inline void launch(unsigned grid, unsigned threads, cudaStream_t, const std::function<void()>& body) {
  static thread_local Block b;  // kept, for its stacks
  b.fibers.resize(threads);
  b.body = &body;
  b.grid.x = grid;
  block() = &b;
  for (b.index.x = 0; b.index.x < grid; ++b.index.x) run_block(b);
  block() = nullptr;
}

template <class T>
T exchange(T value, unsigned source) {
  Block* b = block();
  const unsigned self = b->current;
  std::memcpy(&b->fibers[self].exchanged, &value, sizeof(T));
  wait(State::kAtWarpBarrier);
  T result;
  std::memcpy(&result, &b->fibers[(self & ~31u) + source].exchanged, sizeof(T));
  wait(State::kAtWarpBarrier);
  return result;
}

inline Index thread_index() { return {block()->current}; }

}  // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block()->index)
#define gridDim (emu::block()->grid)

inline void __syncthreads() { emu::wait(emu::State::kAtBlockBarrier); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emu::exchange(value, (emu::block()->current & 31u) ^ unsigned(mask));
}

inline void __syncwarp() { emu::wait(emu::State::kAtWarpBarrier); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __ballot_sync(unsigned, bool vote) {
  emu::Block* b = emu::block();
  const unsigned first = b->current & ~31u;
  b->fibers[b->current].exchanged = vote;
  emu::wait(emu::State::kAtWarpBarrier);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= unsigned(b->fibers[first + lane].exchanged) << lane;
  emu::wait(emu::State::kAtWarpBarrier);
  return bits;
}
