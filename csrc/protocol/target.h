// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Which machine the protocol is compiled for. Nothing but this file, numeric.h and memory.h asks.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define PYALLREDUCE_FN __device__ __forceinline__
#define PYALLREDUCE_BOTH_FN __host__ __device__ inline
#else
#define PYALLREDUCE_FN inline
#define PYALLREDUCE_BOTH_FN inline
#endif

namespace pyallreduce {

constexpr int kMaxRanks = 8;
// A grid that is co-resident on every data-centre GPU since sm_80.
constexpr uint32_t kMaxBlocks = 128;
// Threads of a block that carry data. With the signer's warp they are 512, of which an SM holds two
// blocks at 64 registers a thread: this call's and, behind it, the next one's.
constexpr uint32_t kMaxLanes = 480;
// One more warp: it carries the call's signature.
constexpr uint32_t kSignerLanes = 32;
// docs/design.md proves that two are enough.
constexpr uint32_t kSlots = 2;

// 16 bytes, the unit of every transfer. Only its four words are atomic, each by itself: whoever
// waits for a vector looks at every word.
struct alignas(16) Words {
  uint32_t w[4];
};

PYALLREDUCE_BOTH_FN uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

}  // namespace pyallreduce
