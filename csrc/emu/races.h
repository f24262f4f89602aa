// Tells ThreadSanitizer what orders the threads of an emulated block: barriers do, shuffles and
// votes do not. Without -fsanitize=thread all of this is empty.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emu::races {

#if defined(__SANITIZE_THREAD__)
constexpr bool kDetected = true;

inline void* current_fiber() { return __tsan_get_current_fiber(); }
inline void* create_fiber() { return __tsan_create_fiber(0); }
// Right before a switch of contexts; orders nothing.
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
inline void release(const void* barrier) { __tsan_release(const_cast<void*>(barrier)); }
inline void acquire(const void* barrier) { __tsan_acquire(const_cast<void*>(barrier)); }

// While one lives, what its thread reads and writes is the emulator's own.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
constexpr bool kDetected = false;

inline void* current_fiber() { return nullptr; }
inline void* create_fiber() { return nullptr; }
inline void switch_to(void*) {}
inline void release(const void*) {}
inline void acquire(const void*) {}
struct Unwatched {
  Unwatched() {}
};
#endif

}  // namespace emu::races
