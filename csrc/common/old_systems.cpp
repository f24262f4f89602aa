// Definitions of what gcc 9 to 12 have moved out of their headers into libstdc++ and glibc, for
// systems whose libraries are older (see old_systems.h). They are hidden inside the module. A
// libstdc++ linked statically would not do: exceptions that pass into torch would be counted by two
// copies of the runtime.
#include "common/old_systems.h"

#ifdef MMSSL_OLD_SYSTEMS
#include <new>
#include <sstream>

extern "C" {

// glibc 2.32, read by reference counts: false makes them atomic, as they are without it.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// libstdc++ 3.4.29: where a container would be larger than memory.
__attribute__((visibility("hidden"))) void mmssl_throw_bad_array_new_length() asm(
    "_ZSt28__throw_bad_array_new_lengthv");
void mmssl_throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// CXXABI_1.3.13: the counts behind std::exception_ptr, by its copy constructor and destructor, which
// every libstdc++ exports. The copy is never destroyed, and so leaves the count one higher.
void mmssl_copy_exception_ptr(void* to, const void* from);
void mmssl_destroy_exception_ptr(void* self);
asm(".symver mmssl_copy_exception_ptr,_ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
asm(".symver mmssl_destroy_exception_ptr,_ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");
__attribute__((visibility("hidden"))) void mmssl_add_reference(void* self) asm(
    "_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
__attribute__((visibility("hidden"))) void mmssl_release(void* self) asm(
    "_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void mmssl_add_reference(void* self) {
  void* copy;
  mmssl_copy_exception_ptr(&copy, self);
}
void mmssl_release(void* self) { mmssl_destroy_exception_ptr(self); }
}

// libstdc++ 3.4.26 and 3.4.29: members of the streams that torch's checks write their messages with.
template std::basic_stringstream<char>::basic_stringstream();
template std::basic_ostringstream<char>::basic_ostringstream();
template std::string std::basic_stringbuf<char>::str() const&;
template std::string std::basic_stringbuf<char>::str() &&;
#endif
