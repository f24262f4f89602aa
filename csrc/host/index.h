// Edge list -> both sorted forms of a bipartite graph, each edge once.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace mmssl::host {

// Leaves its elements uninitialized on resize: every one is written before it is read.
template <class T>
struct RawAllocator : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = RawAllocator<U>;
  };
  template <class U>
  void construct(U* p) noexcept {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class V>
  void construct(U* p, V&& v) {
    ::new (static_cast<void*>(p)) U(static_cast<V&&>(v));
  }
};
template <class T>
using Array = std::vector<T, RawAllocator<T>>;

struct Index {
  Array<int64_t> rowptr;  // (U + 1)
  Array<int32_t> col;     // (E), ascending within a user
  Array<int64_t> colptr;  // (I + 1)
  Array<int32_t> row;     // (E), ascending within an item
  Array<int64_t> perm;    // (E), position by item -> position by user
  int64_t bad_edge = -1;  // the first edge whose ids are out of range; the rest is empty then
  bool bad_other = false;  // of index_of_lists
};

Index build_index(const int64_t* user, const int64_t* item, int64_t edges, int64_t num_users,
                  int64_t num_items);

}  // namespace mmssl::host
