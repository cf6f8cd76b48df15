// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// To be loaded before libc: a system on which every second reservation is interrupted by a signal,
// and that has no more threads once MEAGRE_THREADS have been started behind meagre_begin().
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

namespace {
std::atomic<int> left{-1};  // -1: no end of them
std::atomic<unsigned> asked{0};
}  // namespace

extern "C" void meagre_begin() { left = std::atoi(std::getenv("MEAGRE_THREADS")); }

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*),
                              void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (left == 0) return EAGAIN;
  if (left > 0) --left;
  return create(thread, how, run, argument);
}

extern "C" int posix_fallocate(int file, off_t at, off_t size) {
  if (asked++ % 2 == 0) return EINTR;
  using Reserve = int (*)(int, off_t, off_t);
  static const auto reserve = reinterpret_cast<Reserve>(dlsym(RTLD_NEXT, "posix_fallocate"));
  return reserve(file, at, size);
}
