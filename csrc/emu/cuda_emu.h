// Runs a subset of CUDA C++ on the CPU, for tests: one fiber per thread, blocks one after another.
//
// Covers indexing and logic: threadIdx and similar variables, __syncthreads, warp shuffles and
// votes, static shared memory, tensor cores (emu/tensor.h). Built with -fsanitize=thread it also
// finds data races within a block (emu/races.h). It shows neither races between blocks nor speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emu/fiber.h"
#include "emu/races.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
// What was started on the device so far: kernels, and fillings of memory.
inline int64_t& emu_started() {
  static int64_t count = 0;
  return count;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  ++emu_started();
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

// ThreadSanitizer's frames are larger.
constexpr size_t kStackBytes = races::kDetected ? 256 << 10 : 64 << 10;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// A copy to shared memory that was started; age: groups of copies ended since.
struct Copy {
  void* to;
  const void* from;
  int age;
};

struct Fiber {
  Context context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  void* tsan = nullptr;
  State state = State::kReady;
  uint64_t exchanged = 0;  // what the other lanes of the warp may read
  std::vector<Copy> copies;
  int turn = 0;  // see emu/tensor.h
};

struct Block {
  std::deque<Fiber> fibers;  // kept from launch to launch; their addresses must not change
  Context scheduler;
  void* tsan = nullptr;
  unsigned current = 0;  // the running thread
  Index index, grid;
  const std::function<void()>* body = nullptr;
};

inline Block*& block() {
  static thread_local Block* instance = nullptr;
  return instance;
}

// Suspends the running thread. `unordered`: without memory ordering, as in a shuffle or a vote.
inline void wait(State state, bool unordered = false) {
  Block* b;
  Fiber* fiber;
  const void* barrier;
  void* scheduler;
  {
    const races::Unwatched unwatched;
    scheduler = block()->tsan;
    b = block(), fiber = &b->fibers[b->current];
    barrier = state == State::kAtWarpBarrier ? &b->fibers[b->current & ~31u] : (void*)b;
    fiber->state = state;
  }
  // All threads of the barrier release to it before the first one goes on and acquires.
  if (!unordered) races::release(barrier);
  races::switch_to(scheduler);
  fiber->context.switch_to(b->scheduler);
  if (!unordered) races::acquire(barrier);
}

// One thread of every block that is ever run: the same stack and context serve them all.
inline void enter() {
  for (;;) {
    races::acquire(block());
    (*block()->body)();
    wait(State::kDone);
  }
}

// Runs every thread to its next barrier, then opens the barriers that all have reached.
inline void run_block(Block& b, size_t threads) {
  const races::Unwatched unwatched;
  b.tsan = races::current_fiber();
  races::release(&b);
  while (b.fibers.size() < threads) {
    Fiber& fiber = b.fibers.emplace_back();
    fiber.tsan = races::create_fiber();
    fiber.context.start(fiber.stack, enter);
  }
  for (size_t i = 0; i < threads; ++i) {
    b.fibers[i].state = State::kReady;
    b.fibers[i].turn = 0;
    b.fibers[i].copies.clear();
  }
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
      races::switch_to(b.fibers[i].tsan);
      b.scheduler.switch_to(b.fibers[i].context);
      progress = true;
    }
    for (size_t warp = 0; warp < threads; warp += 32) {
      progress |= open(warp, std::min(threads, warp + 32), State::kAtWarpBarrier);
    }
    progress |= open(0, threads, State::kAtBlockBarrier);
    if (!progress) {
      b.fibers.clear();  // they can't be resumed
      throw std::runtime_error("emulator: a barrier or shuffle that some threads do not reach");
    }
  }
  races::acquire(&b);
}

// The dynamic shared memory of the block, of exactly the size of the launch.
inline std::vector<char>& dynamic_shared() {
  static thread_local std::vector<char> bytes;
  return bytes;
}
inline void* shared_base() {
  void* base = dynamic_shared().data();
  size_t space = dynamic_shared().size();
  return std::align(16, space - 16, base, space);
}

inline void launch(unsigned grid, unsigned threads, size_t shared, cudaStream_t,
                   const std::function<void()>& body) {
  dynamic_shared() = std::vector<char>(shared + 16, char(0xff));
  if (grid == 0 || threads == 0 || threads > 1024) {
    throw std::runtime_error("emulator: a launch of " + std::to_string(grid) + " blocks of " +
                             std::to_string(threads) + " threads, which a GPU refuses");
  }
  ++emu_started();
  static thread_local Block b;
  b.body = &body;
  b.grid.x = grid;
  block() = &b;
  for (b.index.x = 0; b.index.x < grid; ++b.index.x) run_block(b, threads);
  block() = nullptr;
}

template <class T>
T exchange(T value, unsigned source) {
  const races::Unwatched unwatched;
  Block* b = block();
  const unsigned self = b->current;
  std::memcpy(&b->fibers[self].exchanged, &value, sizeof(T));
  wait(State::kAtWarpBarrier, true);
  T result;
  std::memcpy(&result, &b->fibers[(self & ~31u) + source].exchanged, sizeof(T));
  wait(State::kAtWarpBarrier, true);
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

inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline unsigned __ballot_sync(unsigned, bool vote) {
  const emu::races::Unwatched unwatched;
  emu::Block* b = emu::block();
  const unsigned first = b->current & ~31u;
  b->fibers[b->current].exchanged = vote;
  emu::wait(emu::State::kAtWarpBarrier, true);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= unsigned(b->fibers[first + lane].exchanged) << lane;
  emu::wait(emu::State::kAtWarpBarrier, true);
  return bits;
}

// Atomic on a GPU among all blocks; here for ThreadSanitizer.
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected,
                                    unsigned long long value) {
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
inline int atomicExch(int* at, int value) {
  return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline int atomicMin(int* at, int value) {
  int found = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < found && !__atomic_compare_exchange_n(at, &found, value, false, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
  }
  return found;
}
