// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The mailboxes of one block. Their addresses are made while the grid before still runs; behind the
// wait for it, a slot is one addition away. And how what arrives there is collected and summed.
#pragma once

#include "protocol/wait.h"

namespace pyallreduce {

// The other ranks in rank order are a rank's peers 0 to N-2.
PYALLREDUCE_FN uint32_t rank_of(uint32_t peer, uint32_t rank) {
  return peer + (peer >= rank ? 1 : 0);
}

template <int kWorld>
struct Mailboxes {
  Words* theirs[kWorld - 1];  // this rank's at rank + 1, rank + 2, ...
  Words* mine;                // peer 0's here
  uint32_t sender;            // vectors from one peer's to the next: all blocks' mailboxes
  uint32_t shot;              // vectors from one shot to the next

  // More addresses than those of four ranks would not stay in registers.
  static constexpr bool kPins = kWorld <= 4;

  PYALLREDUCE_FN Mailboxes(const Call& call, uint32_t block)
      : sender(kMaxBlocks * call.mailbox), shot((kWorld - 1) * sender) {
    const uint32_t first = Slab::apart(call.mailbox, block);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) theirs[hop - 1] = call.boxes[hop].data + first;
    mine = call.boxes[0].data + first;
    pin();
  }

  // The i-th vector to a rank, or from a peer, in the mailboxes that are `further` vectors on.
  PYALLREDUCE_FN Words* to(uint32_t hop, uint32_t i, uint32_t further = 0) const {
    return theirs[hop - 1] + (further + Slab::spread(i));
  }
  PYALLREDUCE_FN Words* from(uint32_t peer, uint32_t i, uint32_t further = 0) const {
    return mine + (further + peer * sender + Slab::spread(i));
  }

  PYALLREDUCE_FN Mailboxes moved(uint32_t vectors) const {
    Mailboxes there = *this;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) there.theirs[hop - 1] += vectors;
    there.mine += vectors;
    there.pin();
    return there;
  }

  // For grid_dependency_wait.
  PYALLREDUCE_FN uint64_t bits() const {
    uint64_t all = reinterpret_cast<uint64_t>(mine);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) all |= reinterpret_cast<uint64_t>(theirs[hop - 1]);
    return all;
  }

 private:
  PYALLREDUCE_FN void pin() {
    if constexpr (kPins) {
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) theirs[hop - 1] = pinned(theirs[hop - 1]);
      mine = pinned(mine);
    }
  }
};

// Takes the vectors that the peers of `expected` (bit p: peer p) sent to `mailbox(p)`, and arms the
// mailboxes again; those of the others stay as they are. All loads of a round are in flight
// together.
template <int kPeers, typename Mailbox>
PYALLREDUCE_FN bool collect(Turn& turn, Phase phase, Words (&vectors)[kPeers], Mailbox mailbox,
                            uint32_t expected = ~0u) {
#pragma unroll
  for (uint32_t peer = 0; peer < kPeers; ++peer) {
    if ((expected >> peer & 1u) != 0) vectors[peer] = ld_relaxed_sys(mailbox(peer));
  }
  const auto arrived = [&] {
    bool again = false;
#pragma unroll
    for (uint32_t peer = 0; peer < kPeers; ++peer) {
      if ((expected >> peer & 1u) != 0 && pending(vectors[peer])) {
        again = true;
        vectors[peer] = ld_relaxed_sys(mailbox(peer));
      }
    }
    return !again;
  };
  // Made out of what was read last, not noted in every poll.
  const auto missing = [&] {
    uint32_t from = turn.call.rank;
#pragma unroll
    for (uint32_t peer = kPeers; peer-- > 0;) {
      if ((expected >> peer & 1u) != 0 && pending(vectors[peer])) {
        from = rank_of(peer, turn.call.rank);
      }
    }
    return from;
  };
  if (!turn.wait(missing, phase, arrived)) return false;
  // Here, where the lanes wait anyway: behind the barrier and the stores of the output it would be
  // part of the call's time.
#pragma unroll
  for (uint32_t peer = 0; peer < kPeers; ++peer) {
    if ((expected >> peer & 1u) != 0) st_relaxed_sys(mailbox(peer), armed());
  }
  return true;
}

// The sum of all ranks' vectors in rank order. The first two may change places, which spares rank 0
// an order of its own: of two operands a sum does not depend on the order.
template <typename T, int kWorld>
PYALLREDUCE_FN Words sum_of(const Words& own, const Words (&others)[kWorld - 1], uint32_t rank) {
  if constexpr (kWorld == 2) {
    return reduce<T>({own, others[0]});
  } else {
    const uint32_t place = rank == 0 ? 1 : rank;
    Words by_rank[kWorld];
    by_rank[0] = others[0];
#pragma unroll
    for (uint32_t r = 1; r < kWorld; ++r) {
      const Words& if_below = others[r < kWorld - 1 ? r : r - 1];
      const Words& if_above = others[r > 1 ? r - 1 : r];
      by_rank[r] = r == place ? own : r < place ? if_below : if_above;
    }
    return reduce<T>(by_rank);
  }
}

}  // namespace pyallreduce
