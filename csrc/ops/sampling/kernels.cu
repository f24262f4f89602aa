// The users are the first B entries of a Fisher-Yates shuffle, each found by a thread of its own. Step
// b swaps position b with position target[b], so the number at a position was put there by the last
// step that had it as its target, and came from that step's own position, where the same holds;
// without such a step it is the position itself. The steps are found by their target in a hash table
// of lists. The order of a list depends on chance, its last step before another does not.
#include "ops/sampling/kernels.cuh"

namespace mmssl::cuda {
namespace {

// -1 is empty and the end of a list.
struct Steps {
  unsigned long long* position;  // (slots)
  int* head;                     // (slots): a step of the position's list
  int* next;                     // (B)
  int64_t slots;                 // a power of two, at least twice the positions

  __device__ int64_t first(int64_t at) const {
    return int64_t((uint64_t(at) * 0x9e3779b97f4a7c15u) >> 32) & (slots - 1);
  }
};
constexpr unsigned long long kEmpty = ~0ull;

int64_t num_slots(int64_t batch) {
  int64_t slots = 2;
  while (slots < 2 * batch) slots *= 2;
  return slots;
}

__device__ __forceinline__ int64_t target_of(const SampleArgs& a, int64_t step) {
  const int64_t above = scaled(a.draw[step], a.num_candidates - step);
  return step + (above < 0 ? 0 : above);
}

__global__ void __launch_bounds__(kBlock) insert_kernel(SampleArgs a, Steps steps) {
  const int64_t b = global_thread();
  if (b >= a.batch) return;
  const unsigned long long target = target_of(a, b);
  int64_t slot = steps.first(target);
  for (;; slot = (slot + 1) & (steps.slots - 1)) {
    const unsigned long long found = atomicCAS(steps.position + slot, kEmpty, target);
    if (found == kEmpty || found == target) break;
  }
  steps.next[b] = atomicExch(steps.head + slot, int(b));
}

__global__ void __launch_bounds__(kBlock)
    sample_kernel(SampleArgs a, Steps steps, int64_t* __restrict__ user, int64_t* __restrict__ pos,
                  int64_t* __restrict__ neg) {
  const int64_t b = global_thread();
  if (b >= a.batch) return;
  int64_t position = target_of(a, b);
  for (int time = int(b);;) {
    int64_t slot = steps.first(position);
    while (steps.position[slot] != kEmpty && int64_t(steps.position[slot]) != position) {
      slot = (slot + 1) & (steps.slots - 1);
    }
    int last = -1;
    for (int step = steps.head[slot]; step >= 0; step = steps.next[step]) {
      last = step < time && step > last ? step : last;
    }
    if (last < 0) break;
    position = time = last;
  }
  const int64_t u = a.candidates[position], first = a.rowptr[u], degree = a.rowptr[u + 1] - first;
  const int32_t* items = a.col + first;
  user[b] = u;
  pos[b] = items[scaled(a.draw[a.batch + b], degree)];
  neg[b] = missing_item(items, degree, scaled(a.draw[2 * a.batch + b], a.num_items - degree));
}

}  // namespace

int64_t sample_bpr_scratch(int64_t batch) { return num_slots(batch) * 12 + batch * 4; }

cudaError_t launch_sample_bpr(const SampleArgs& a, int64_t* user, int64_t* pos, int64_t* neg,
                              void* scratch, cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  Steps steps{static_cast<unsigned long long*>(scratch), nullptr, nullptr, num_slots(a.batch)};
  steps.head = reinterpret_cast<int*>(steps.position + steps.slots);
  steps.next = steps.head + steps.slots;
  const cudaError_t cleared = cudaMemsetAsync(scratch, 0xff, sample_bpr_scratch(a.batch), stream);
  if (cleared != cudaSuccess) return cleared;
  MMSSL_LAUNCH(insert_kernel, num_blocks(a.batch), kBlock, stream, a, steps);
  MMSSL_LAUNCH(sample_kernel, num_blocks(a.batch), kBlock, stream, a, steps, user, pos, neg);
  return cudaGetLastError();
}

}  // namespace mmssl::cuda
