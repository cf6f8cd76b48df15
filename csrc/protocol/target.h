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

// Whether a load may read on to the end of an aligned vector. On a GPU it can: no page ends within
// one, and what it reads is not used. On the host AddressSanitizer would be right to object.
#if defined(__CUDACC__)
constexpr bool kReadsOn = true;
#else
constexpr bool kReadsOn = false;
#endif

constexpr int kMaxRanks = 8;
// A grid that is co-resident on every data-centre GPU since sm_80.
constexpr uint32_t kMaxBlocks = 128;
// Threads of a block that carry data: a whole MiB fits one step of the full grid. The kernels of
// more than three ranks need more registers than that leaves.
constexpr uint32_t kMaxLanes = 512;
PYALLREDUCE_BOTH_FN constexpr uint32_t max_lanes(uint32_t world) {
  return world <= 3 ? kMaxLanes : 480;
}
// One more warp: it carries the call's signature.
constexpr uint32_t kSignerLanes = 32;
// docs/design.md proves that two are enough.
constexpr uint32_t kSlots = 2;

// 16 bytes, the unit of every transfer. Only its four words are atomic, each by itself: whoever
// waits for a vector looks at every word.
struct alignas(16) Words {
  uint32_t w[4];
};
// Vectors of a line of the L2.
constexpr uint32_t kLine = 128 / sizeof(Words);

PYALLREDUCE_BOTH_FN uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

}  // namespace pyallreduce
