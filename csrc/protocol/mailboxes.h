// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The mailboxes of one block. Their addresses are made while the grid before still runs; behind the
// wait for it, a slot is one addition away.
#pragma once

#include "protocol/call.h"

namespace pyallreduce {

template <int kWorld>
struct Mailboxes {
  Words* theirs[kWorld - 1];  // this rank's at rank + 1, rank + 2, ...
  Words* mine;                // rank 0's here, or rank 1's at rank 0
  uint32_t tile;              // vectors of one mailbox
  uint32_t rank;
  uint64_t shot;  // vectors from one shot to the next: all blocks' mailboxes

  // `place(slab, sender)`: that sender's mailbox in a slab.
  template <typename Place>
  PYALLREDUCE_FN Mailboxes(const Call& call, uint32_t tile_, Place place)
      : tile(tile_), rank(call.rank), shot(uint64_t{kMaxBlocks} * (kWorld - 1) * tile_) {
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      theirs[hop - 1] = place(call.slab((rank + hop) % kWorld), rank);
    }
    mine = place(call.slab(rank), rank == 0 ? 1 : 0);
  }

  PYALLREDUCE_FN Words* to(uint32_t hop) const { return theirs[hop - 1]; }
  PYALLREDUCE_FN Words* from(uint32_t sender) const {
    return mine + (sender - (sender > rank ? 1 : 0)) * tile;
  }

  PYALLREDUCE_FN Mailboxes further(uint64_t vectors) const {
    Mailboxes there = *this;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) there.theirs[hop - 1] += vectors;
    there.mine += vectors;
    return there;
  }

  // For grid_dependency_wait.
  PYALLREDUCE_FN uint64_t bits() const {
    uint64_t all = reinterpret_cast<uint64_t>(mine);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) all |= reinterpret_cast<uint64_t>(to(hop));
    return all;
  }
};

}  // namespace pyallreduce
