// Twins of the instructions of common/hopper.cuh, from the text of the PTX manual. Included by it only.
#pragma once
#include <cstdint>
#include <cstring>

#include "emu/tensor.h"

namespace emu {

inline Fiber& fiber() { return block()->fibers[block()->current]; }

// mbarrier: phases end when all arrivals and all announced bytes are there.
inline Barrier& barrier_at(uint64_t* at) { return *reinterpret_cast<Barrier*>(at); }
inline void init_barrier(uint64_t* at, int arrivals) {
  static_assert(sizeof(Barrier) == 8);
  barrier_at(at) = {0, uint16_t(arrivals), uint8_t(arrivals), 0};
}
inline void arrive(uint64_t* at, uint32_t bytes) {
  races::release(at);
  const races::Unwatched unwatched;
  Barrier& barrier = barrier_at(at);
  if (barrier.missing == 0) throw std::runtime_error("emulator: more arrivals than a phase has");
  barrier.bytes += int32_t(bytes);
  --barrier.missing;
  barrier.advance();
}
inline void wait_for_phase(uint64_t* at, int parity) {
  {
    const races::Unwatched unwatched;
    fiber().barrier = &barrier_at(at);
    fiber().parity = parity;
  }
  if (barrier_at(at).phase == parity) wait(State::kAtPhase, true);
  races::acquire(at);
}

// cp.async.bulk. The target is NaN until the bytes have arrived: in blocks of even numbers as late as
// they may, when no thread can go on, in the others at once, so that warps can run ahead of each other.
inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* at) {
  const auto multiple = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!multiple(shared) || !multiple(global) || bytes % 16 != 0) {
    throw std::runtime_error("emulator: cp.async.bulk of what is not a multiple of 16 bytes");
  }
  std::memset(shared, 0xff, bytes);
  races::release(at);  // the arrival of the bytes is one of the barrier's
  const races::Unwatched unwatched;
  block()->bulk_copies.push_back({shared, global, bytes, &barrier_at(at)});
  if (block()->index.x % 2 == 1) deliver(*block());
}

// "Matrix descriptor": where the fields are. Addresses are relative to the dynamic shared memory.
inline uint32_t shared_address(const void* p) {
  return uint32_t(static_cast<const char*>(p) - static_cast<char*>(shared_base()));
}
struct Descriptor {
  uint32_t start, leading, stride;
  int swizzle;  // bits of the address that are changed: 3, 2, 1 or 0 of them

  explicit Descriptor(uint64_t bits)
      : start(uint32_t(bits & 0x3fff) << 4),
        leading(uint32_t(bits >> 16 & 0x3fff) << 4),
        stride(uint32_t(bits >> 32 & 0x3fff) << 4),
        swizzle(bits >> 62 == 0 ? 0 : 4 - int(bits >> 62)) {
    if (bits >> 49 & 7) throw std::runtime_error("emulator: a base offset");
  }
  // Entry (row, k) of an operand; rows are those of a or the columns of b. k_major: neighboring k are
  // neighbors in memory. A group is 8 rows (8 k), or what fits the span of the swizzle.
  uint16_t operator()(unsigned row, unsigned k, bool k_major) const {
    const unsigned span = 16u << swizzle;  // bytes of a line that is swizzled as a whole
    uint32_t offset;
    if (k_major) {
      offset = row % 8 * span + row / 8 * stride;
      offset += swizzle == 0 ? k / 8 * leading + k % 8 * 2 : k * 2;
    } else if (swizzle == 0) {
      offset = row % 8 * 2 + row / 8 * stride + k % 8 * 16 + k / 8 * leading;
    } else {
      const unsigned entries = span / 2;
      offset = row % entries * 2 + row / entries * leading + k % 8 * span + k / 8 * stride;
    }
    uint32_t at = start + offset;
    at ^= (at >> 7 & ((1u << swizzle) - 1)) << 4;
    uint16_t bits;
    std::memcpy(&bits, static_cast<const char*>(shared_base()) + at, 2);
    return bits;
  }
};

// The entries that this lane multiplies, as they are in memory now.
inline void read_operands(Product& p) {
  const unsigned warp = block()->current / 32 % 4, lane = block()->current % 32;
  if (p.from_a != 0) {
    const Descriptor a(p.from_a);
    for (unsigned h = 0; h < 2; ++h) {
      for (unsigned k = 0; k < 16; ++k) p.a[h][k] = a(warp * 16 + lane / 4 + 8 * h, k, true);
    }
  }
  const Descriptor b(p.from_b);
  for (unsigned n = 0; n < 16; ++n) {
    for (unsigned k = 0; k < 16; ++k) p.b[n][k] = b(n / 2 * 8 + lane % 4 * 2 + n % 2, k, !p.transposed);
  }
}

inline float of_bits(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float v;
  std::memcpy(&v, &word, sizeof(v));
  return v;
}

// wgmma.mma_async.m64n64k16 of bfloat16. What the lane holds of the result, "Accumulator Fragment":
// rows l / 4 and l / 4 + 8 of the 16 of its warp, as 8 tiles of mma.m16n8.
inline void start_product(float* d, const uint32_t* words, uint64_t from_a, uint64_t from_b,
                          bool transposed, bool add) {
  Product p{};
  p.d = d, p.add = add, p.transposed = transposed, p.from_a = from_a, p.from_b = from_b;
  if (words != nullptr) {
    const races::Unwatched unwatched;
    const Handed* lanes = hand_over({{words[0], words[1], words[2], words[3], 0, 0}, nullptr});
    const unsigned row = block()->current % 32 / 4;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned group = 0; group < 4; ++group) {
        const uint32_t word = lanes[row * 4 + group].words[i];
        p.a[i % 2][i / 2 * 8 + group * 2] = uint16_t(word);
        p.a[i % 2][i / 2 * 8 + group * 2 + 1] = uint16_t(word >> 16);
      }
    }
  }
  read_operands(p);
  const races::Unwatched unwatched;
  auto& products = fiber().products;
  if (!fiber().fenced) throw std::runtime_error("emulator: wgmma without wgmma.fence");
  p.first = std::none_of(products.begin(), products.end(),
                         [&](const Product& other) { return other.d == d; });
  if (p.first) {
    std::memcpy(p.before, d, sizeof(p.before));
    std::memset(static_cast<void*>(d), 0xff, sizeof(p.before));
  }
  products.push_back(p);
}
inline void commit_products() {
  const races::Unwatched unwatched;
  for (Product& p : fiber().products) ++p.age;
}

__attribute__((noinline, no_sanitize("address", "thread", "undefined"))) inline void finish(
    const Product& p) {
  float d[32];
  std::memcpy(d, p.first ? p.before : p.d, sizeof(d));
  for (int i = 0; i < 32; ++i) {
    const int column = i / 4 * 2 + i % 2;
    double sum = p.add ? d[i] : 0;
    for (int k = 0; k < 16; ++k) {
      sum += double(of_bits(p.a[i % 4 / 2][k])) * double(of_bits(p.b[column][k]));
    }
    d[i] = toward_zero(sum);
  }
  std::memcpy(p.d, d, sizeof(d));
}

// Results are written as late as they may be; until then they are NaN. The operands must not have
// changed in between.
inline void wait_for_products(int pending) {
  auto& products = fiber().products;
  for (size_t n = 0; n < products.size(); ++n) {
    if (products[n].age <= pending) continue;
    Product now = products[n];
    read_operands(now);
    const races::Unwatched unwatched;
    if (std::memcmp(now.a, products[n].a, sizeof(now.a)) != 0 ||
        std::memcmp(now.b, products[n].b, sizeof(now.b)) != 0) {
      throw std::runtime_error("emulator: an operand of wgmma was overwritten before it was read");
    }
    finish(products[n]);
    for (size_t m = n + 1; m < products.size(); ++m) {  // the next one adds to this result
      if (products[m].d != products[n].d) continue;
      std::memcpy(products[m].before, products[n].d, sizeof(now.before));
      products[m].first = true;
      break;
    }
  }
  const races::Unwatched unwatched;
  std::erase_if(products, [&](const Product& p) { return p.age > pending; });
  for (const Product& p : products) {
    if (p.first) std::memset(static_cast<void*>(p.d), 0xff, sizeof(p.before));
  }
  fiber().fenced = false;
}

}  // namespace emu
