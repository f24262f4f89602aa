// A block ranks kUsers users at a time, where there are few users only among a part of the items; a
// second launch then merges the parts. For each tile of kItems items its threads compute the
// scores, one item per thread; then its warps append, in the order of the items, what exceeds a
// user's threshold to the user's candidates, and cut these back to the best k whenever they fill
// their buffer. Candidates live in global memory (they stay in the L2 cache), one buffer per user
// of every block on the device.
#include "ops/topk/kernels.cuh"

#include <cmath>

#include "ops/topk/score_key.h"

namespace mmssl::cuda {
namespace {

constexpr int kThreads = kTileBlock, kWarps = kThreads / kWarp;
constexpr int kItems = kThreads;
constexpr int kResident = 4;  // blocks per multiprocessor that scratch is set aside for

// Features of a tile: rows of 128 bytes (of the accumulated type) are read at a time.
template <class A>
constexpr int kDepth = 128 / sizeof(A);
// Users of a block, each an accumulator of every thread.
template <class A>
constexpr int kUsers = 64 / sizeof(A);

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class A>
struct Candidates {
  A* score;       // (capacity)
  int32_t* item;  // the same; ascending
};

// The number of scores, out of `count`, that are at least t; a whole warp.
template <class A>
__device__ int count_at_least(const A* score, int count, A t, int lane) {
  int sum = 0;
  for (int j = lane; j < count; j += 32) sum += score[j] >= t ? 1 : 0;
  return sum_of_lanes(sum);
}

// Keeps the best k of more than k candidates, and at most `slack` more where that ends the search
// sooner; ties go to the smaller item. Returns how many are left and sets the threshold that a
// later item has to exceed. A whole warp; see cut() in select.h.
template <class A>
__device__ int cut(const Candidates<A>& c, int count, int k, int slack, A& threshold, int lane) {
  A least = c.score[0], most = least;
  for (int j = lane; j < count; j += 32) {
    least = c.score[j] < least ? c.score[j] : least;
    most = c.score[j] > most ? c.score[j] : most;
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const A low = __shfl_xor_sync(kAllLanes, least, mask);
    const A high = __shfl_xor_sync(kAllLanes, most, mask);
    least = low < least ? low : least;
    most = high > most ? high : most;
  }
  Key<A> low = to_key(least), high = to_key(most) + 1;
  int at_low = count, at_high = 0;
  for (int step = 0; high != low + 1 && at_low > k + slack; ++step) {
    const Key<A> middle = middle_key<A>(low, high, step >= kStepsByValue);
    const int at_middle = count_at_least(c.score, count, from_key<A>(middle), lane);
    if (at_middle >= k) {
      low = middle;
      at_low = at_middle;
    } else {
      high = middle;
      at_high = at_middle;
    }
  }
  const A t = from_key<A>(low);
  int left = at_low > k + slack ? k - at_high : at_low;  // scores equal to t that are still kept
  int kept = 0;
  const unsigned before = (1u << lane) - 1;
  for (int j = 0; j < count; j += 32) {
    const bool live = j + lane < count;
    const A score = live ? c.score[j + lane] : A(0);
    const int32_t item = live ? c.item[j + lane] : 0;
    const unsigned equal = __ballot_sync(kAllLanes, live && score == t);
    const bool keep = live && (score > t || (score == t && __popc(equal & before) < left));
    const unsigned kept_here = __ballot_sync(kAllLanes, keep);
    __syncwarp();  // all lanes have read what is overwritten: a vote orders no memory
    if (keep) {
      c.score[kept + __popc(kept_here & before)] = score;
      c.item[kept + __popc(kept_here & before)] = item;
    }
    __syncwarp();
    left -= __popc(equal) < left ? __popc(equal) : left;
    kept += __popc(kept_here);
  }
  threshold = t;
  return kept;
}

// Sorts a power of two of entries, best first, ties by smaller item; the whole block.
template <class A>
__device__ void sort(A* score, int32_t* item, int size) {
  for (int width = 2; width <= size; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int n = threadIdx.x; n < size / 2; n += kThreads) {
        const int i = 2 * n - (n & (distance - 1)), j = i + distance;
        const bool falling = (i & width) == 0;
        const bool ahead = score[i] > score[j] || (score[i] == score[j] && item[i] < item[j]);
        if (ahead == falling) continue;
        const A other_score = score[i];
        const int32_t other_item = item[i];
        score[i] = score[j], item[i] = item[j];
        score[j] = other_score, item[j] = other_item;
      }
      __syncthreads();
    }
  }
}

// How a call is divided, and its scratch.
template <class A>
struct Plan {
  int64_t blocks;      // of the first launch
  int64_t parts;       // of the items
  int64_t part_items;  // a multiple of kItems
  int capacity;        // of the candidates of a user in a part
  A* score;            // (blocks, kUsers, capacity), then (tiles, kUsers, parts k) where parts > 1
  int32_t* item;       // the same
  int32_t* count;      // (blocks, kUsers) where parts > 1

  int64_t merged_entries;

  __host__ __device__ int64_t entries() const { return blocks * kUsers<A> * capacity; }
  int64_t bytes() const {
    const int64_t counts = blocks * kUsers<A> * int64_t(sizeof(int32_t));
    return (entries() + merged_entries) * int64_t(sizeof(A) + sizeof(int32_t)) + counts;
  }
  // Those of a user in one part.
  __device__ Candidates<A> of(int64_t block, int r) const {
    const int64_t at = (block * kUsers<A> + r) * capacity;
    return {score + at, item + at};
  }
  // Those of a user in all parts.
  __device__ Candidates<A> merged(int64_t tile, int r, int k) const {
    const int64_t at = entries() + (tile * kUsers<A> + r) * parts * k;
    return {score + at, item + at};
  }
};

// Sorts the candidates of a user and writes the best; the whole block.
template <class T, class A>
__device__ void write_best(const TopkArgs<T, A>& a, int64_t row, const Candidates<A>& c, int count,
                           int k) {
  __shared__ A best_score[kMaxTopk];
  __shared__ int32_t best_item[kMaxTopk];
  const A worst = -A(INFINITY);
  int sorted_size = 1;
  while (sorted_size < k) sorted_size *= 2;
  for (int n = threadIdx.x; n < sorted_size; n += kThreads) {
    best_score[n] = n < count ? c.score[n] : worst;
    best_item[n] = n < count ? c.item[n] : INT32_MAX;
  }
  __syncthreads();
  sort(best_score, best_item, sorted_size);
  for (int64_t n = threadIdx.x; n < a.k; n += kThreads) {
    const bool real = n < count;
    a.scores[row * a.k + n] = real ? best_score[n] : worst;
    a.items[row * a.k + n] = real ? best_item[n] : -1;
  }
  __syncthreads();
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    topk_kernel(TopkArgs<T, A> a, const Plan<A> plan) {
  __shared__ A item_tile[kDepth<A>][kItems + 1];
  alignas(16) __shared__ A user_tile[kDepth<A>][kUsers<A>];
  __shared__ A score[kUsers<A>][kItems];
  __shared__ A threshold[kUsers<A>];
  __shared__ int count[kUsers<A>];
  __shared__ int64_t user[kUsers<A>];  // -1: none

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int k = int(a.k < a.num_items ? a.k : a.num_items);
  const A worst = -A(INFINITY);
  const int capacity = plan.capacity;
  // With several parts every block has one tile of users.
  const int64_t begin = int64_t(blockIdx.x) % plan.parts * plan.part_items;
  const int64_t end = begin + plan.part_items < a.num_items ? begin + plan.part_items : a.num_items;

  for (int64_t first = int64_t(blockIdx.x) / plan.parts * kUsers<A>; first < a.batch;
       first += int64_t(gridDim.x) / plan.parts * kUsers<A>) {
    if (thread < kUsers<A>) {
      int64_t u = -1;
      if (first + thread < a.batch) u = a.users == nullptr ? first + thread : a.users[first + thread];
      if (u < 0 || u >= a.num_users) u = -1;
      user[thread] = u;
      count[thread] = 0;
      threshold[thread] = worst;
    }
    __syncthreads();

    for (int64_t j0 = begin; j0 < end; j0 += kItems) {
      A sum[kUsers<A>] = {};
      for (int64_t k0 = 0; k0 < a.d; k0 += kDepth<A>) {
        for (int n = thread; n < kItems * kDepth<A>; n += kThreads) {
          const int64_t j = j0 + n / kDepth<A>, feature = k0 + n % kDepth<A>;
          const bool live = j < a.num_items && feature < a.d;
          item_tile[n % kDepth<A>][n / kDepth<A>] = live ? widen(a.item_emb[j * a.d + feature]) : A(0);
        }
        for (int n = thread; n < kUsers<A> * kDepth<A>; n += kThreads) {
          const int64_t u = user[n / kDepth<A>], feature = k0 + n % kDepth<A>;
          const bool live = u >= 0 && feature < a.d;
          user_tile[n % kDepth<A>][n / kDepth<A>] = live ? widen(a.user_emb[u * a.d + feature]) : A(0);
        }
        __syncthreads();
        const int depth = int(a.d - k0 < kDepth<A> ? a.d - k0 : kDepth<A>);
        for (int n = 0; n < depth; ++n) {
          const A x = item_tile[n][thread];
#pragma unroll
          for (int r = 0; r < kUsers<A>; ++r) sum[r] = multiply_add(user_tile[n][r], x, sum[r]);
        }
        __syncthreads();
      }
#pragma unroll
      for (int r = 0; r < kUsers<A>; ++r) score[r][thread] = sum[r];
      __syncthreads();

#pragma unroll 1
      for (int r = warp; r < kUsers<A>; r += kWarps) {  // a warp has the same users in every tile
        const int64_t u = user[r];
        if (u < 0) continue;
        if (a.rowptr != nullptr) {
          for (int64_t p = a.rowptr[u] + lane; p < a.rowptr[u + 1]; p += 32) {
            const int64_t column = a.col[p] - j0;
            if (column >= 0 && column < kItems) score[r][column] = worst;
          }
          __syncwarp();
        }
        const Candidates<A> c = plan.of(blockIdx.x, r);
        int own = count[r];
        A limit = threshold[r];
        for (int part = 0; part < kItems; part += 32) {
          const A s = score[r][part + lane];
          const int64_t j = j0 + part + lane;
          bool good = j < a.num_items && s > limit;
          unsigned all_good = __ballot_sync(kAllLanes, good);
          if (all_good == 0) continue;
          if (own + 32 > capacity) {
            own = cut(c, own, k, k / 8, limit, lane);
            good = good && s > limit;
            all_good = __ballot_sync(kAllLanes, good);
          }
          const int position = own + __popc(all_good & ((1u << lane) - 1));
          if (good) {
            c.score[position] = s;
            c.item[position] = int32_t(j);
          }
          own += __popc(all_good);
          __syncwarp();
        }
        __syncwarp();
        if (lane == 0) {
          count[r] = own;
          threshold[r] = limit;
        }
        __syncwarp();
      }
      __syncthreads();
    }

    for (int r = 0; r < kUsers<A> && first + r < a.batch; ++r) {
      const Candidates<A> c = plan.of(blockIdx.x, r);
      // The warp that may change the count is the only one to look at it.
      if (warp == r % kWarps && count[r] > k) {
        A limit = worst;
        const int left = cut(c, count[r], k, 0, limit, lane);
        __syncwarp();
        if (lane == 0) count[r] = left;
      }
      __syncthreads();
      if (plan.parts == 1) {
        write_best(a, first + r, c, count[r], k);
      } else if (thread == 0) {
        plan.count[int64_t(blockIdx.x) * kUsers<A> + r] = count[r];
      }
    }
  }
}

// A block for each tile of users. Parts lie in the order of the items, and so do the candidates within.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kResident)
    merge_kernel(TopkArgs<T, A> a, const Plan<A> plan) {
  __shared__ int count[kUsers<A>];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = int(a.k < a.num_items ? a.k : a.num_items);
  const int64_t tile = blockIdx.x, first = tile * kUsers<A>;
  for (int r = warp; r < kUsers<A> && first + r < a.batch; r += kWarps) {
    const Candidates<A> all = plan.merged(tile, r, k);
    int total = 0;
    for (int64_t part = 0; part < plan.parts; ++part) {
      const int64_t block = tile * plan.parts + part;
      const Candidates<A> c = plan.of(block, r);
      const int own = plan.count[block * kUsers<A> + r];
      for (int j = lane; j < own; j += 32) {
        all.score[total + j] = c.score[j], all.item[total + j] = c.item[j];
      }
      total += own;
    }
    __syncwarp();
    A limit = 0;
    if (total > k) total = cut(all, total, k, 0, limit, lane);
    if (lane == 0) count[r] = total;
  }
  __syncthreads();
  for (int r = 0; r < kUsers<A> && first + r < a.batch; ++r) {
    write_best(a, first + r, plan.merged(tile, r, k), count[r], k);
  }
}

// Twice the candidates that are kept, and those of a warp.
template <class T, class A>
int64_t capacity_of(const TopkArgs<T, A>& a) {
  const int64_t k = a.k < a.num_items ? a.k : a.num_items;
  return (2 * k + 128 + 31) / 32 * 32;
}

// Few users leave multiprocessors idle, which then take a part of the items each.
constexpr int64_t kMaxParts = 16, kMinPartItems = 4 * kItems;

template <class T, class A>
Plan<A> plan_of(const TopkArgs<T, A>& a, int processors) {
  const int64_t tiles = ceil_div(a.batch, kUsers<A>), most = int64_t(processors) * kResident;
  int64_t parts = 1;
  while (parts < kMaxParts && 2 * parts * tiles <= most && a.num_items >= 2 * parts * kMinPartItems) {
    parts *= 2;
  }
  Plan<A> plan{};
  plan.parts = parts;
  plan.part_items = ceil_div(ceil_div(a.num_items, parts), kItems) * kItems;
  plan.blocks = parts > 1 || tiles < most ? tiles * parts : most;
  plan.capacity = int(capacity_of(a));
  const int64_t k = a.k < a.num_items ? a.k : a.num_items;
  plan.merged_entries = parts == 1 ? 0 : tiles * kUsers<A> * parts * k;
  return plan;
}

}  // namespace

template <class T, class A>
int64_t topk_scratch(const TopkArgs<T, A>& a, int processors) {
  return plan_of(a, processors).bytes();
}

template <class T, class A>
cudaError_t launch_masked_topk(const TopkArgs<T, A>& a, void* scratch, int processors,
                               cudaStream_t stream) {
  if (a.batch == 0 || a.k == 0) return cudaSuccess;
  Plan<A> plan = plan_of(a, processors);
  const int64_t entries = plan.entries() + plan.merged_entries;
  plan.score = static_cast<A*>(scratch);
  plan.item = reinterpret_cast<int32_t*>(plan.score + entries);
  plan.count = plan.item + entries;
  MMSSL_LAUNCH((topk_kernel<T, A>), unsigned(plan.blocks), kThreads, stream, a, plan);
  if (plan.parts > 1) {
    MMSSL_LAUNCH((merge_kernel<T, A>), num_blocks(a.batch, kUsers<A>), kThreads, stream, a, plan);
  }
  return cudaGetLastError();
}

#define MMSSL_INSTANTIATE(T, A)                                                  \
  template int64_t topk_scratch(const TopkArgs<T, A>&, int);                     \
  template cudaError_t launch_masked_topk(const TopkArgs<T, A>&, void*, int, cudaStream_t);
MMSSL_INSTANTIATE(float, float)
MMSSL_INSTANTIATE(bf16, float)
MMSSL_INSTANTIATE(double, double)
#undef MMSSL_INSTANTIATE

}  // namespace mmssl::cuda
