// Included by the compiler before every file, so that what is built on a new system also loads on
// one with glibc 2.28 and the libstdc++ of gcc 8, as torch's own wheels do (manylinux_2_28).
//
// glibc keeps every older version of a function that it changed. The linker takes the newest one
// unless a version is named, and then the module does not load where that version is missing.
#pragma once

#if defined(__linux__) && defined(__has_include)
#if __has_include(<features.h>)
#include <features.h>
#endif
#endif

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#define MMSSL_OLD_SYSTEMS 1
#ifdef __x86_64__
#define MMSSL_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define MMSSL_FIRST_GLIBC "GLIBC_2.17"
#endif
#define MMSSL_OLDEST(name) asm(".symver " #name "," #name "@" MMSSL_FIRST_GLIBC)

MMSSL_OLDEST(dlsym);         // 2.34: moved from libdl; headers of torch 2.14 call it
MMSSL_OLDEST(exp);           // 2.29: no wrapper that sets errno
MMSSL_OLDEST(exp2);          // 2.29
MMSSL_OLDEST(log);           // 2.29
MMSSL_OLDEST(pthread_once);  // 2.34: moved from libpthread, which Python loads, to libc
#endif
