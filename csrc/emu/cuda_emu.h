// Runs a subset of CUDA C++ on the CPU, for tests: one fiber per thread, blocks one after another.
//
// Covers indexing and logic: threadIdx and similar variables, __syncthreads, warp shuffles and
// votes, static shared memory, tensor cores (emu/tensor.h, emu/hopper.h). Built with -fsanitize=thread
// it also finds data races within a block (emu/races.h). It shows neither races between blocks nor
// speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <new>
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

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kAtPhase, kDone };

// A copy to shared memory that was started; age: groups of copies ended since.
struct Copy {
  void* to;
  const void* from;
  int age;
};

// An mbarrier: what is missing before its phase ends, arrivals and bytes.
struct Barrier {
  int32_t bytes;
  uint16_t missing;
  uint8_t arrivals, phase;

  void advance() {
    if (missing == 0 && bytes == 0) missing = arrivals, phase ^= 1;
  }
};

// A copy by cp.async.bulk that was started.
struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  Barrier* barrier;
};

// A wgmma that was started, of one lane; see emu/hopper.h.
struct Product {
  float* d;
  bool add, first;  // to what d holds; nothing else in flight writes d
  int age;          // groups of products ended since
  float before[32];
  uint64_t from_a, from_b;  // descriptors; 0 for operands in registers
  bool transposed;
  uint16_t a[2][16], b[16][16];  // what the lane multiplies: two rows, 16 columns
};

struct Fiber {
  Context context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  void* tsan = nullptr;
  State state = State::kReady;
  uint64_t exchanged = 0;  // what the other lanes of the warp may read
  std::vector<Copy> copies;
  std::vector<Product> products;
  bool fenced = false;                 // since results of a wgmma were waited for
  const Barrier* barrier = nullptr;    // at which it waits, for the end of a phase of that parity
  int parity = 0;
  int turn = 0;  // see emu/tensor.h
};

struct Block {
  std::deque<Fiber> fibers;  // kept from launch to launch; their addresses must not change
  Context scheduler;
  void* tsan = nullptr;
  unsigned current = 0;  // the running thread
  Index index, grid;
  const std::function<void()>* body = nullptr;
  std::deque<BulkCopy> bulk_copies;
};

inline Block*& block() {
  static thread_local Block* instance = nullptr;
  return instance;
}

// The oldest bulk copy arrives; false without one.
inline bool deliver(Block& b) {
  if (b.bulk_copies.empty()) return false;
  const BulkCopy copy = b.bulk_copies.front();
  b.bulk_copies.pop_front();
  std::memcpy(copy.to, copy.from, copy.bytes);
  copy.barrier->bytes -= int32_t(copy.bytes);
  copy.barrier->advance();
  return true;
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

// Runs a warp as far as it gets without the others, then the next one, so that warps which depend on
// each other are as far apart as they may be; then opens the block's barrier if all have reached it.
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
    b.fibers[i].products.clear();
    b.fibers[i].fenced = false;
  }
  b.bulk_copies.clear();
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
    for (size_t warp = 0; warp < threads; warp += 32) {
      const size_t end = std::min(threads, warp + 32);
      for (bool moved = true; moved; progress |= moved) {
        moved = false;
        for (size_t i = warp; i < end; ++i) {
          Fiber& fiber = b.fibers[i];
          const bool ended = fiber.state == State::kAtPhase && fiber.barrier->phase != fiber.parity;
          if (fiber.state != State::kReady && !ended) continue;
          fiber.state = State::kReady;
          b.current = unsigned(i);
          races::switch_to(fiber.tsan);
          b.scheduler.switch_to(fiber.context);
          moved = true;
        }
        moved |= open(warp, end, State::kAtWarpBarrier);
      }
    }
    progress |= open(0, threads, State::kAtBlockBarrier);
    if (!progress) progress = deliver(b);
    if (!progress) {
      b.fibers.clear();  // they can't be resumed
      throw std::runtime_error("emulator: a barrier or shuffle that some threads do not reach");
    }
  }
  if (!b.bulk_copies.empty()) throw std::runtime_error("emulator: a bulk copy that is not waited for");
  races::acquire(&b);
}

// The dynamic shared memory of the block, of exactly the size of the launch.
constexpr std::align_val_t kSharedAlignment{1024};
struct FreeShared {
  void operator()(char* bytes) const { operator delete(bytes, kSharedAlignment); }
};
inline std::unique_ptr<char, FreeShared>& dynamic_shared() {
  static thread_local std::unique_ptr<char, FreeShared> bytes;
  return bytes;
}
inline void* shared_base() { return dynamic_shared().get(); }

inline void launch(unsigned grid, unsigned threads, size_t shared, cudaStream_t,
                   const std::function<void()>& body) {
  dynamic_shared().reset(static_cast<char*>(operator new(shared, kSharedAlignment)));
  std::memset(shared_base(), 0xff, shared);
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

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emu::exchange(value, unsigned(source));
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
