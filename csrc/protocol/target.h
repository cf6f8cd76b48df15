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
constexpr uint32_t kMaxBlocks =
    128;  // a grid that is co-resident on every data-centre GPU since sm_80
constexpr uint32_t kMaxLanes = 512;    // threads of a block that carry data
constexpr uint32_t kSignerLanes = 32;  // one more warp: it carries the call's signature
constexpr uint32_t kSlots = 2;         // docs/design.md proves that two are enough

// 16 bytes, the unit of every transfer. Only its four words are atomic, each by itself: whoever
// waits for a vector looks at every word.
struct alignas(16) Words {
  uint32_t w[4];
};

PYALLREDUCE_BOTH_FN uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

}  // namespace pyallreduce
