// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One call as a kernel parameter, and the signature by which ranks recognise each other's call.
#pragma once

#include "protocol/slab.h"

namespace pyallreduce {

enum class DataType : uint32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class Algorithm : uint32_t { kOneShot = 1, kTwoShot = 2 };

// Where block 0 finds its mailboxes of slot 0 in one rank's slab.
struct Boxes {
  Words* data;        // for what this rank sends there; in the own slab, for what peer 0 sends
  Words* signatures;  // for what this rank sends there; in the own slab, the first of them
};

// Addresses are made on the host, and what a kernel reads first comes first: between other kernels
// every instruction before its first load, and every line of parameters that nothing has read yet,
// is part of the call's time (bench/NOTES.md, entry 39).
struct Call {
  const void* in;  // aligned to 16 bytes; may equal `out`
  void* out;
  BlockWord* epochs;
  Control* control;
  uint32_t elements;  // of this launch
  uint32_t tile;      // vectors a block (and, in two-shot, an owner), in each lap
  uint32_t mailbox;   // vectors of a mailbox of this algorithm
  uint32_t rank;
  uint32_t vectors;        // second word of the signature: of the whole message
  uint32_t shape;          // third
  uint32_t tag;            // fourth: the caller's, below 2^31
  uint32_t laps;           // how often a block goes through its mailboxes
  Boxes boxes[kMaxRanks];  // by how far their owner is behind this rank
  uint32_t stride;         // vectors of all blocks together, in each lap
  Record* record;          // this rank's
  char* slabs[kMaxRanks];  // this process's addresses, by the same order
  Layout layout;

  PYALLREDUCE_FN uint32_t rank_at(uint32_t hop) const {
    return rank + hop - (rank + hop < layout.world ? 0 : layout.world);
  }
  PYALLREDUCE_BOTH_FN Slab slab_at(uint32_t hop) const { return Slab{slabs[hop], &layout}; }
  PYALLREDUCE_BOTH_FN Slab own() const { return slab_at(0); }
  PYALLREDUCE_FN Slab slab(uint32_t owner) const {
    return slab_at(owner - rank + (owner < rank ? layout.world : 0));
  }
};

// A signature is one vector {epoch, vectors, shape, tag}, sent like data: no word of it is the
// sentinel.
//   shape = dtype:3 | operation:2 | algorithm:2 | refused:1 | bytes of the last vector:4 | grid:8 |
//   laps:6 | chunk:6 (modulo 64)
struct Shape {
  DataType dtype;
  Algorithm algorithm;
  uint32_t tail_bytes;
  uint32_t grid;
  uint32_t laps;
  uint32_t chunk;
};

constexpr uint32_t kRefusedShape = 1u << 7;
constexpr uint32_t kEpochMask = 0x7fffffffu;
constexpr uint32_t kMaxLaps = 63;

PYALLREDUCE_BOTH_FN uint32_t encode_shape(const Shape& s) {
  constexpr uint32_t sum = 0;
  return static_cast<uint32_t>(s.dtype) | sum << 3 | static_cast<uint32_t>(s.algorithm) << 5 |
         s.tail_bytes << 8 | (s.grid & 0xffu) << 12 | (s.laps & 0x3fu) << 20 |
         (s.chunk & 0x3fu) << 26;
}

PYALLREDUCE_BOTH_FN Shape decode_shape(uint32_t shape) {
  return Shape{static_cast<DataType>(shape & 7u),
               static_cast<Algorithm>(shape >> 5 & 3u),
               shape >> 8 & 15u,
               shape >> 12 & 0xffu,
               shape >> 20 & 0x3fu,
               shape >> 26};
}

PYALLREDUCE_FN Words signature(uint32_t epoch, uint32_t vectors, uint32_t shape, uint32_t tag) {
  return Words{{epoch & kEpochMask, vectors, shape, tag}};
}
PYALLREDUCE_FN Words signature_of(const Call& call, uint32_t epoch) {
  return signature(epoch, call.vectors, call.shape, call.tag);
}

PYALLREDUCE_FN bool same(const Words& a, const Words& b) {
  return ((a.w[0] ^ b.w[0]) | (a.w[1] ^ b.w[1]) | (a.w[2] ^ b.w[2]) | (a.w[3] ^ b.w[3])) == 0;
}

}  // namespace pyallreduce
