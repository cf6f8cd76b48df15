// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The exchange of signatures: one more warp carries them beside the data, so that they cost no hop.
// All algorithms use the same places and epochs, or ranks that chose different ones would never
// meet. Two ranks that differ both see it, and a third differs from at least one of them: nobody
// needs to be told.
#pragma once

#include "protocol/wait.h"

namespace pyallreduce {

// The signer lane that guards the block against a second call.
constexpr uint32_t kOwnerLane = kMaxRanks;

template <int kWorld, typename Block>
PYALLREDUCE_FN void announce(Block& block, Turn& turn) {
  block.signer([&](uint32_t lane) {
    const uint32_t rank = turn.call.rank;
    if (lane < kWorld && lane != rank && turn.ok()) {
      st_relaxed_sys(turn.peer(lane).signature(turn.slot, turn.block, rank),
                     signature_of(turn.call, turn.epoch));
    }
    if (lane != kOwnerLane) return;
    if (!turn.ok()) {  // a stopped generation: the host has to learn it from this call too
      turn.report(turn.stop, rank, Phase::kNone, armed(), 0);
      return;
    }
    const uint32_t busy = atom_exch_relaxed_gpu(&turn.mine().state(turn.block)->owner, 1);
    if (busy != 0) turn.report(Stop::kOverlap, rank, Phase::kNone, armed(), 0);
  });
}

template <int kWorld, typename Block>
PYALLREDUCE_FN void confirm(Block& block, Turn& turn) {
  block.signer([&](uint32_t lane) {
    if (lane >= kWorld || lane == turn.call.rank) return;
    Words* mailbox = turn.mine().signature(turn.slot, turn.block, lane);
    Words theirs = ld_relaxed_sys(mailbox);
    const auto arrived = [&] {
      if (!pending(theirs)) return true;
      theirs = ld_relaxed_sys(mailbox);
      return !pending(theirs);
    };
    if (!turn.wait(lane, Phase::kSignature, arrived)) return;
    st_relaxed_sys(mailbox, armed());
    const Words ours = signature_of(turn.call, turn.epoch);
    bool same = true;
    for (int i = 0; i < 4; ++i) same = same && ours.w[i] == theirs.w[i];
    if (same) return;
    const bool refused = (theirs.w[2] & kRefusedShape) != 0;
    turn.report(refused ? Stop::kRefused : Stop::kMismatch, lane, Phase::kSignature, theirs, 0);
  });
}

// The end of a block's part of a call. Every lane has read the epoch before `block.all`.
template <typename Block>
PYALLREDUCE_FN void advance(Block& block, const Turn& turn) {
  block.leader([&] {
    BlockState* state = turn.mine().state(turn.block);
    st_relaxed_sys(&state->epoch, turn.epoch + 1);
    st_relaxed_sys(&state->owner, 0);
  });
}

// A rank that can't join a call says so in the call's place of every block: it does not know the
// grid. No epoch advances; the generation ends here, and a new one starts at the next call
// (agree.py).
template <int kWorld, typename Block>
PYALLREDUCE_FN void announce_refusal(Block& block, const Call& call) {
  grid_dependency_wait();
  const Turn turn(call, block.index);
  block.signer([&](uint32_t lane) {
    if (lane < kWorld && lane != call.rank && turn.ok()) {
      st_relaxed_sys(turn.peer(lane).signature(turn.slot, turn.block, call.rank),
                     signature_of(call, turn.epoch));
    }
  });
}

}  // namespace pyallreduce
