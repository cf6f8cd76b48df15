// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The proof of an edge, at start-up: a ping-pong by two resident kernels, in which each rank writes
// into the other's slab and reads its own. A copy followed by a synchronisation would also pass on
// machines whose running kernels never see a peer's writes.
#pragma once

#include "protocol/wait.h"

namespace pyallreduce {

// A vector that names job, sender and round; none of its words is the sentinel. The mixing is
// xorshift-multiply, as in the finaliser of MurmurHash3.
PYALLREDUCE_FN Words probe_pattern(uint32_t seed, uint32_t sender, uint32_t round) {
  Words v;
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t word = seed ^ (sender << 28 | round << 2 | i);
    word = (word ^ word >> 16) * 0x85ebca6bu;
    word = (word ^ word >> 13) * 0xc2b2ae35u;
    v.w[i] = (word ^ word >> 16) & 0x7fffffffu;
  }
  return v;
}

// One end of the edge between this rank and `peer`: `call.vectors` rounds, `call.tag` is the seed.
//
// Nothing is re-armed: a slot goes from one known vector to the next, and any third value is
// corruption. Two slots are enough: round k + 2 is written when the peer's round k + 1 is here, and
// the peer sent that after it had read round k.
class PingPong {
 public:
  PYALLREDUCE_FN PingPong(const Call& call, uint32_t peer)
      : call_(call), peer_(peer), start_(nanoseconds()) {}

  PYALLREDUCE_FN void run() {
    EdgeState state = EdgeState::kSound;
    uint32_t round = 0;
    for (; round < call_.vectors && state == EdgeState::kSound; ++round) {
      st_relaxed_sys(call_.slab(peer_).probe(round % kSlots, call_.rank), sent(round));
      state = await(round);
    }
    if (state != EdgeState::kSound) --round;
    Edge& edge = call_.record->edges[peer_];
    edge.rounds = round;
    edge.nanoseconds = nanoseconds() - start_;
    edge.read_back = state == EdgeState::kSilent && stands(round) ? 1 : 0;
    st_release_sys(&edge.state, static_cast<uint32_t>(state));
  }

 private:
  PYALLREDUCE_FN Words sent(uint32_t round) const {
    return probe_pattern(call_.tag, call_.rank, round);
  }

  PYALLREDUCE_FN EdgeState await(uint32_t round) const {
    const Words* mailbox = call_.own().probe(round % kSlots, peer_);
    const Words next = probe_pattern(call_.tag, peer_, round);
    const Words last = round < kSlots ? armed() : probe_pattern(call_.tag, peer_, round - kSlots);
    for (uint32_t polls = 1;; ++polls) {
      const Words seen = ld_relaxed_sys(mailbox);
      uint32_t arrived = 0;
      for (int i = 0; i < 4; ++i) {
        if (seen.w[i] == next.w[i]) {
          ++arrived;
        } else if (seen.w[i] != last.w[i]) {
          return EdgeState::kCorrupt;
        }
      }
      if (arrived == 4) return EdgeState::kSound;
      pause_after(polls);
      if (polls % kPollsPerLook == 0 && too_late()) return EdgeState::kSilent;
    }
  }

  PYALLREDUCE_FN bool too_late() const {
    const HostWords& host = call_.record->host;
    if (ld_relaxed_sys(&host.stop) != 0) return true;
    return nanoseconds() - start_ > in_nanoseconds(ld_relaxed_sys(&host.deadline_ms));
  }

  // Whether this rank's last write is what it reads from the peer's memory.
  PYALLREDUCE_FN bool stands(uint32_t round) const {
    const Words seen = ld_relaxed_sys(call_.slab(peer_).probe(round % kSlots, call_.rank));
    const Words mine = sent(round);
    bool same = true;
    for (int i = 0; i < 4; ++i) same = same && seen.w[i] == mine.w[i];
    return same;
  }

  const Call& call_;
  uint32_t peer_;
  uint64_t start_;
};

// Block i has the i-th of the other ranks.
template <typename Block>
PYALLREDUCE_FN void ping_pong(Block& block, const Call& call) {
  const uint32_t peer = block.index + (block.index >= call.rank ? 1 : 0);
  block.leader([&] { PingPong(call, peer).run(); });
}

}  // namespace pyallreduce
