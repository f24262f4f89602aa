// The stream of tiles and the products of the kernels with wgmma. Included by wgmma_sm90a.cu only.
#pragma once
#include "common/hopper.cuh"
#include "ops/info_nce/panels.cuh"

#if defined(__CUDACC__) || defined(MMSSL_EMULATE_CUDA)
namespace mmssl::cuda::pipelined::warpgroups {

constexpr int kThreads = 2 * kWarpgroup;  // each warpgroup owns 64 of the block's 128 rows
constexpr int kPlane = kCols * 64;        // entries of 64 rows and 64 features
constexpr uint32_t kGroup = 1024;         // bytes of 8 lines of a plane

// kBlocks: of a multiprocessor. Two that wait for each product and fill each other's gaps, or one
// whose results take all registers.
template <int kDepth_, int kStages_, int kBlocks_>
struct Shape {
  static constexpr int kDepth = kDepth_, kStages = kStages_, kBlocks = kBlocks_;
  // Tiles of which the last one is not copied at once, but when the other warpgroup is done with its place.
  static constexpr int kLag = kStages > 4 ? 2 : 1;
  static constexpr int kPlanes = kDepth / 64, kSteps = kDepth / 16;
  // Whether the rows of a warpgroup are operands in shared memory; otherwise they are in registers.
  static constexpr bool kOwnShared = kDepth > 64;
  static constexpr int kTile = kCols * kDepth, kTileBytes = kTile * 2;
  static constexpr int kBytes = (2 + kStages) * kTileBytes + kStages * (kCols * 16 + 16) + kRows * 4 +
                                (2 * kStages + 1) * 8;
};

// What a tile is, for the warps that mask it.
struct alignas(16) TileInfo {
  int first, count;  // its columns begin there; the set ends there
  Leave leave;
  bool masked;  // some entry of the block's may be left out
};

// What is in shared memory.
template <class S>
struct Shared {
  char* base;

  __device__ __forceinline__ bf16* own(int warpgroup = 0) const {
    return reinterpret_cast<bf16*>(base) + warpgroup * S::kTile;
  }
  __device__ __forceinline__ bf16* tile(int stage) const { return own(2 + stage); }
  __device__ __forceinline__ TileInfo& info(int stage) const {
    return reinterpret_cast<TileInfo*>(own(2 + S::kStages))[stage];
  }
  __device__ __forceinline__ ColumnPair* columns(int stage) const {
    return reinterpret_cast<ColumnPair*>(&info(S::kStages)) + stage * kCols / 2;
  }
  __device__ __forceinline__ float* shifts(int stage) const {
    return reinterpret_cast<float*>(columns(S::kStages)) + stage * kCols;
  }
  // The positives of the columns, where these are anchors.
  __device__ __forceinline__ int* targets(int stage) const {
    return reinterpret_cast<int*>(shifts(S::kStages)) + stage * kCols;
  }
  __device__ __forceinline__ int* own_targets() const { return targets(S::kStages); }
  __device__ __forceinline__ Barrier& full(int stage) const {
    return reinterpret_cast<Barrier*>(own_targets() + kRows)[stage];
  }
  __device__ __forceinline__ Barrier& empty(int stage) const { return full(S::kStages + stage); }
  __device__ __forceinline__ Barrier& own_full() const { return full(2 * S::kStages); }

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < S::kStages; ++stage) {
        full(stage).init(1);
        empty(stage).init(kThreads / kWarp);
      }
      own_full().init(1);
      publish_barriers();
    }
    __syncthreads();
  }
};

// A place in the ring, and the parity of the phase in which it is full.
template <class S>
struct Turn {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == S::kStages) stage = 0, parity ^= 1;
  }
};

// Copies the rows of a block and its tiles; one thread does.
template <class S, class P>
struct Copies {
  const P& p;
  const Block& b;
  const Shared<S>& m;
  int set;
  bool forward, shifts;
  Turn<S> turn;
  Cursor at;

  __device__ __forceinline__ void start() {
    const int64_t first = padded_first(p, set, b.pair) + b.first;
    const bool targets = p.target != nullptr && set == 0;
    m.own_full().arrive_and_expect(2 * S::kTileBytes + (targets ? kRows * 4 : 0));
    copy_bulk(m.own(), p.panel[set] + first * S::kDepth, 2 * S::kTileBytes, m.own_full());
    if (targets) copy_bulk(m.own_targets(), p.padded_target + first, kRows * 4, m.own_full());
#pragma unroll 1
    for (int n = 0; n < S::kStages; ++n) next();
  }
  // The next tile, if there is one, when the warps have released its place.
  __device__ __forceinline__ void next() {
    if (!at.next(p, set, b)) return;
    const int stage = turn.stage;
    const int64_t row = padded_first(p, at.from.set, at.from.pair) + int64_t(at.tile) * kCols;
    TileInfo info{at.tile * kCols, at.from.count, Leave::kNothing, false};
    info.masked = info.first + kCols > info.count;
    if (at.from.same_index) {
      info.leave = Leave::kSameIndex;
      if (p.target != nullptr && at.from.set != set) {  // in the forward only anchors have positives
        info.leave = forward || set == 0 ? Leave::kPositivesOfRows : Leave::kPositivesOfColumns;
        info.masked = true;
      } else if (info.first < b.first + kRows && b.first < info.first + kCols) {
        info.masked = true;
      }
    }
    const bool targets = info.leave == Leave::kPositivesOfColumns;
    Barrier& full = m.full(stage);
    m.empty(stage).wait(turn.parity ^ 1);
    m.info(stage) = info;
    full.arrive_and_expect(S::kTileBytes + kCols * (8 + (shifts ? 4 : 0) + (targets ? 4 : 0)));
    copy_bulk(m.tile(stage), p.panel[at.from.set] + row * S::kDepth, S::kTileBytes, full);
    copy_bulk(m.columns(stage), p.column[at.from.set] + 2 * row, kCols * 8, full);
    if (shifts) copy_bulk(m.shifts(stage), p.column_shift[at.from.set] + row, kCols * 4, full);
    if (targets) copy_bulk(m.targets(stage), p.padded_target + row, kCols * 4, full);
    turn.next();
  }
};

// A descriptor of which only the address, the lower half, varies.
struct Address {
  uint32_t low;

  __device__ __forceinline__ explicit Address(uint32_t low_) : low(low_) {}
  __device__ __forceinline__ explicit Address(const bf16* shared) : low(uint32_t(descriptor(shared, kGroup))) {}
  __device__ __forceinline__ Address plus(int bytes) const { return Address(low + uint32_t(bytes >> 4)); }
  __device__ __forceinline__ operator uint64_t() const {
    return descriptor(nullptr, kGroup) >> 32 << 32 | low;
  }
};

// The 64 rows of a warpgroup as operands of products over the features.
template <class S>
struct Own {
  uint32_t words[S::kOwnShared ? 1 : S::kSteps][4];
  Address shared{0u};

  __device__ __forceinline__ void load(const Shared<S>& m) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    // The same for all lanes, which the compiler can't know of the number of a warp.
    const int warpgroup = __shfl_sync(kAllLanes, warp / 4, 0);
    m.own_full().wait(0);
    shared = Address(m.own(warpgroup));
    if constexpr (!S::kOwnShared) {
      const int row = warp % 4 * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
      for (int k = 0; k < S::kSteps; ++k) {
        const int piece = (k * 2 + lane / 16) ^ (row % 8);
        load_tiles<false>(words[k], m.own(warpgroup) + row * 64 + piece * 8);
      }
    }
  }
};

// Starts the scores of the warpgroup's rows and a tile, as a group.
template <class S>
__device__ __forceinline__ void start_scores(Accumulator& s, const Own<S>& own, Address tile) {
  fence_products();
#pragma unroll
  for (int k = 0; k < S::kSteps; ++k) {
    const int at = k / 4 * (kPlane * 2) + k % 4 * 32;
    if constexpr (S::kOwnShared) {
      if (k == 0) multiply_async<false>(s, own.shared, tile);
      if (k > 0) multiply_add_async<false>(s, own.shared.plus(at), tile.plus(at));
    } else {
      if (k == 0) multiply_async<false>(s, own.words[k], tile);
      if (k > 0) multiply_add_async<false>(s, own.words[k], tile.plus(at));
    }
  }
  commit_products();
}

// Starts to add the products of weights, 64 rows and the columns of a tile, and the tile's features,
// as a group; without `add` there is nothing yet to add them to.
template <class S>
__device__ __forceinline__ void start_gradients(Accumulator (&out)[S::kPlanes],
                                                const uint32_t (&weights)[4][4], Address tile,
                                                bool add) {
  fence_products();
#pragma unroll
  for (int u = 0; u < 4; ++u) {
#pragma unroll
    for (int f = 0; f < S::kPlanes; ++f) {
      multiply_add_async<true>(out[f], weights[u], tile.plus(f * (kPlane * 2) + u * 2 * int(kGroup)),
                               add || u > 0);
    }
  }
  commit_products();
}

// The tiles of a block as a warpgroup meets them.
template <class S, class P>
struct Tiles {
  const Block& b;
  const Shared<S>& m;
  const int* own_targets;  // null where the positives are those of the columns
  Address first;           // of the first stage
  Turn<S> turn;            // of the present tile
  int to_copy;             // tiles until the first thread copies another one
  Copies<S, P> copies;

  __device__ __forceinline__ Tiles(const P& p, const Block& b_, const Shared<S>& m_, int set, bool forward,
                                   bool shifts)
      : b(b_), m(m_), own_targets(forward || set == 0 ? m_.own_targets() : nullptr), first(m_.tile(0)),
        to_copy(S::kLag), copies{p, b_, m_, set, forward, shifts, {}, {}} {
    if (threadIdx.x == 0) copies.start();
  }

  __device__ __forceinline__ int count() const { return b.end - b.begin; }
  // Waits for the present tile and returns its features.
  __device__ __forceinline__ Address wait() const {
    m.full(turn.stage).wait(turn.parity);
    return first.plus(turn.stage * S::kTileBytes);
  }
  // Allows the tile in a stage to be overwritten.
  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) m.empty(stage).arrive();
    if (threadIdx.x == 0 && --to_copy < 0) copies.next();
  }
  // Calls f(mask) if any entry of the warp is left out of the present tile.
  template <class F>
  __device__ __forceinline__ void masked(const F& f) const {
    const TileInfo info = m.info(turn.stage);
    if (!info.masked) return;
    const int* const targets = own_targets == nullptr ? m.targets(turn.stage) : own_targets;
    const Mask mask{b, info.first, info.count, info.leave, targets};
    if (mask.any()) f(mask);
  }
};

}  // namespace mmssl::cuda::pipelined::warpgroups
#endif
