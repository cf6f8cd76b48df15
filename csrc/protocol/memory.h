// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Every load, store, fence and clock that crosses ranks, those of a rank's own message, and the
// launch control. The only inline PTX. Named after the PTX; the host's forms are C++ atomics of the
// same strength.
//
// What orders what. Pushes, polls and re-arming are all relaxed: a hop by release and acquire costs
// 1.6 us more on an H100. Arrival is therefore in the data itself (no word is the sentinel), and
// the one ordering that data do not give, "my re-arming is performed before my next call's push",
// rests on the stated assumption that a finished grid's writes are performed at system scope before
// the next grid of the stream passes grid_dependency_wait(). docs/design.md, "Why a slot is never
// overwritten". Between the laps of a launch, fence_sys(), ld_acquire_sys() and the block's
// barriers give it.
#pragma once

#include "protocol/target.h"

#if !defined(__CUDACC__)
#include <sched.h>

#include <chrono>
#include <ctime>
#include <thread>
#endif

namespace pyallreduce {

#if defined(__CUDACC__)

PYALLREDUCE_FN Words ld_relaxed_sys(const Words* from) {
  Words v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from)
               : "memory");
  return v;
}
PYALLREDUCE_FN uint32_t ld_relaxed_sys(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// Between what this block's barrier has ordered and a relaxed store: a release.
PYALLREDUCE_FN void fence_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
// Acquire: what the writer of these words saw performed before it wrote them precedes what this
// thread does later, and what a barrier puts behind that. Unlike a fence it does not wait until
// this thread's own stores are performed, which takes long where the wire is busy.
PYALLREDUCE_FN Words ld_acquire_sys(const Words* from) {
  Words v;
  asm volatile("ld.acquire.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from)
               : "memory");
  return v;
}
PYALLREDUCE_FN void st_relaxed_sys(Words* to, const Words& v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.w[0]),
               "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
PYALLREDUCE_FN void st_relaxed_sys(uint32_t* to, uint32_t v) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
// Release: the record's fields, written before by this thread, are seen by whoever acquires this
// word.
PYALLREDUCE_FN void st_release_sys(uint32_t* to, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
// A rank's own input and output.
PYALLREDUCE_FN Words ld_weak(const Words* from) {
  Words v;
  asm volatile("ld.weak.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from)
               : "memory");
  return v;
}
PYALLREDUCE_FN void st_weak(Words* to, const Words& v) {
  asm volatile("st.weak.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.w[0]), "r"(v.w[1]),
               "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
// Sets a line on its way from memory to the L2. Nobody waits for it, and it orders nothing: whoever
// reads the line later finds there what was written to it by then.
PYALLREDUCE_FN void prefetch(const Words* in_line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(in_line) : "memory");
}
PYALLREDUCE_FN uint32_t atom_exch_relaxed_gpu(uint32_t* at, uint32_t v) {
  uint32_t old;
  asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(at), "r"(v)
               : "memory");
  return old;
}

PYALLREDUCE_FN uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// Programmatic dependent launch: the next grid of the stream may be scheduled from here on...
PYALLREDUCE_FN void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// ... and it waits here until the grid before it has finished and its writes are performed. (One
// that was launched plainly has not started before.) `early`: what is to be computed by then, any
// bits of it whose low half is not all zero; without a use of it the compiler would put that work
// behind the wait.
PYALLREDUCE_FN void grid_dependency_wait(uint64_t early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("{.reg .pred known; setp.ne.u32 known, %0, 0; @known griddepcontrol.wait;}" ::"r"(
                   static_cast<uint32_t>(early))
               : "memory");
#endif
}

// An address, or a parameter, that is made once: the compiler would make it anew at each use,
// behind the wait.
template <typename V>
PYALLREDUCE_FN V* pinned(V* address) {
  asm volatile("" : "+l"(address));
  return address;
}
PYALLREDUCE_FN uint32_t pinned(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Between two looks at clock and abort words, some milliseconds. A look at the host's words, from
// the second on, takes 0.3 ms for a call of 256 KiB and 1 ms for one of 1 MiB, since the reads of
// its warps go over PCIe one by one. If that is longer than a peer waits until its own such look,
// two ranks keep each other late for ever: with 256 polls, a look in less than 0.1 ms, a call took
// 330 us instead of 2.8 (bench/NOTES.md, entry 26). 4096 were enough among four GPUs; this is for
// slower hosts.
constexpr uint32_t kPollsPerLook = 16384;
PYALLREDUCE_FN void pause_after(uint32_t /*polls*/) {}

#else

inline Words ld_relaxed_sys(const Words* from) {
  Words v;
  for (int i = 0; i < 4; ++i) v.w[i] = __atomic_load_n(&from->w[i], __ATOMIC_RELAXED);
  return v;
}
inline uint32_t ld_relaxed_sys(const uint32_t* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
inline Words ld_acquire_sys(const Words* from) {
  Words v;
  for (int i = 0; i < 4; ++i) v.w[i] = __atomic_load_n(&from->w[i], __ATOMIC_ACQUIRE);
  return v;
}
inline void fence_sys() { __atomic_thread_fence(__ATOMIC_ACQ_REL); }
inline void st_relaxed_sys(Words* to, const Words& v) {
  for (int i = 0; i < 4; ++i) __atomic_store_n(&to->w[i], v.w[i], __ATOMIC_RELAXED);
}
inline void st_relaxed_sys(uint32_t* to, uint32_t v) { __atomic_store_n(to, v, __ATOMIC_RELAXED); }
inline void st_release_sys(uint32_t* to, uint32_t v) { __atomic_store_n(to, v, __ATOMIC_RELEASE); }
inline Words ld_weak(const Words* from) { return *from; }
inline void st_weak(Words* to, const Words& v) { *to = v; }
inline void prefetch(const Words* /*in_line*/) {}
inline uint32_t atom_exch_relaxed_gpu(uint32_t* at, uint32_t v) {
  return __atomic_exchange_n(at, v, __ATOMIC_RELAXED);
}

inline uint64_t nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

inline void launch_dependents() {}
// The host has no grids: one fence a call takes the place of the assumption above.
inline void grid_dependency_wait(uint64_t /*early*/) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename V>
V pinned(V value) {
  return value;
}

constexpr uint32_t kPollsPerLook = 64;
// A peer's process may need this core: spin briefly, then yield. Where a stranger wants it too, who
// yields is without it for a whole slice, some milliseconds; who sleeps has it back when he wakes.
constexpr uint64_t kSlice = 2'500'000;  // ns
constexpr uint32_t kCrowded = 300;      // sleeps, of some 60 us, until yielding is tried again
inline void pause_after(uint32_t polls) {
  if (polls % 16 != 0) return;
  static thread_local uint32_t crowded = 0;
  if (crowded > 0) {
    --crowded;
    std::this_thread::sleep_for(std::chrono::microseconds(1));
    return;
  }
  const uint64_t before = nanoseconds();
  sched_yield();
  if (nanoseconds() - before > kSlice) crowded = kCrowded;
}

#endif

}  // namespace pyallreduce
