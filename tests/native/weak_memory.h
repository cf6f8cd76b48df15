// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Put in front of every source of a test program by -include: the relaxed stores of csrc/protocol
// are held back and performed later, in any order but that of one word, and threads yield and sleep
// at their loads and stores. Seeded by PYALLREDUCE_TEST_SEED; one seed gives one sequence of
// choices a thread, not one interleaving; seed 0 holds nothing back.
//
// A fence, a release and the end of a thread perform what is held back. This makes the
// host as weak as the protocol believes a GPU to be: a fence that is missing hardly ever shows on
// x86 alone. With FENCES_DO_NOTHING the fence in the place of a grid's end performs nothing: then
// the protocol must fail.
#pragma once

#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace weak {

constexpr uint32_t kHeld = 24;

struct Store {
  uint32_t* at;
  uint32_t value;
  bool slow;  // is held long, while others overtake it
};

inline std::atomic<uint64_t> threads{0};

struct Thread {
  Store held[kHeld];
  uint32_t count = 0;
  uint64_t random;
  bool calm;

  Thread() {
    const char* given = std::getenv("PYALLREDUCE_TEST_SEED");
    const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
    random = seed * 0x9e3779b97f4a7c15u + threads.fetch_add(1) * 0xbf58476d1ce4e5b9u + 1;
    calm = seed == 0;
  }
  ~Thread() { flush(); }

  uint32_t next() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<uint32_t>(random >> 32);
  }

  // The oldest held store to the word of the i-th, so that a word's stores keep their order.
  void perform(uint32_t i) {
    for (uint32_t k = 0; k < i; ++k) {
      if (held[k].at == held[i].at) i = k;
    }
    const Store store = held[i];
    for (uint32_t k = i + 1; k < count; ++k) held[k - 1] = held[k];
    --count;
    __atomic_store_n(store.at, store.value, __ATOMIC_RELAXED);
  }

  void flush() {
    while (count > 0) perform(0);
  }

  // Those to one word alone.
  void flush(const uint32_t* at) {
    for (uint32_t i = 0; i < count;) {
      if (held[i].at == at) {
        perform(i);
      } else {
        ++i;
      }
    }
  }

  void stir() {
    if (calm) return;
    const uint32_t dice = next();
    if (count > 0 && dice % 8 == 0) {
      const uint32_t i = next() % count;
      if (!held[i].slow || dice % 2048 == 0) perform(i);
    }
    if (dice % 512 == 0) sched_yield();
    if (dice % 4096 == 0) {
      const timespec pause{0, 100'000};
      nanosleep(&pause, nullptr);
    }
  }

  void store(uint32_t* at, uint32_t value) {
    if (calm) return __atomic_store_n(at, value, __ATOMIC_RELEASE);
    stir();
    if (count == kHeld) perform(next() % count);
    held[count++] = Store{at, value, next() % 16 == 0};
  }

  uint32_t load(const uint32_t* at, int order) {
    stir();
    for (uint32_t k = count; k > 0; --k) {
      if (held[k - 1].at == at) return held[k - 1].value;
    }
    return order == __ATOMIC_ACQUIRE ? __atomic_load_n(at, __ATOMIC_ACQUIRE)
                                     : __atomic_load_n(at, __ATOMIC_RELAXED);
  }
};

inline Thread& thread() {
  static thread_local Thread one;
  return one;
}

template <typename T>
void store(T* at, T value, int order) {
  if (order != __ATOMIC_RELAXED) thread().flush();
  if constexpr (std::is_same_v<T, uint32_t>) {
    if (order == __ATOMIC_RELAXED) return thread().store(at, value);
  }
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

template <typename T>
T load(const T* at, int order) {
  if constexpr (std::is_same_v<T, uint32_t>) {
    return thread().load(at, order);
  } else {
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
  }
}

template <typename T>
T exchange(T* at, T value, int /*order*/) {
  thread().flush(at);
  return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL);
}

inline void fence(int order) {
#ifndef FENCES_DO_NOTHING
  thread().flush();
#endif
  __atomic_thread_fence(order);
}

inline void yield() {
  thread().stir();
  sched_yield();
}

}  // namespace weak

// A macro is not expanded within itself: the builtins above are the compiler's.
#define __atomic_store_n(at, value, order) weak::store((at), (value), (order))
#define __atomic_load_n(at, order) weak::load((at), (order))
#define __atomic_exchange_n(at, value, order) weak::exchange((at), (value), (order))
#define __atomic_thread_fence(order) weak::fence(order)
#define sched_yield() weak::yield()
