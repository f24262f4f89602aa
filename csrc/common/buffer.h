// Scratch memory of the CPU kernels.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mmssl::cpu {

// Uninitialized memory, aligned to cache lines.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) {
    const size_t bytes = (size * sizeof(T) + 127) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Hands out the parts of one allocation: take everything to measure, allocate, take everything
// again. malloc keeps one block from call to call, where it would unmap and fault in many large
// ones.
class Arena {
 public:
  template <class T>
  T* take(int64_t size) {
    char* const at = memory_.get() == nullptr ? nullptr : memory_.get() + used_;
    used_ += (size * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
  void allocate() {
    memory_ = Buffer<char>(used_);
    used_ = 0;
  }

 private:
  Buffer<char> memory_;
  int64_t used_ = 0;
};

}  // namespace mmssl::cpu
