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

// The signer lane that guards the block against a second call. Lane i below it has the peer that is
// i behind this rank.
constexpr uint32_t kOwnerLane = kMaxRanks;
constexpr uint32_t kSignatureSlot = kMaxBlocks * kMaxRanks;  // vectors from slot to slot

template <int kWorld, typename Block>
class Signatures {
 public:
  PYALLREDUCE_FN Signatures(const Block& block, const Call& call) {
    const uint32_t first = block.index * kMaxRanks;
    block.signer([&](uint32_t hop) {
      if (!has_peer(hop)) return;
      to_[hop] = pinned(call.boxes[hop].signatures + first);
      from_[hop] = pinned(call.boxes[0].signatures + (first + hop));
      ours_[hop] = Ours{pinned(call.vectors), pinned(call.shape), pinned(call.tag)};
    });
  }

  PYALLREDUCE_FN void send(const Block& block, const Turn& turn, uint32_t lap = 0) const {
    block.signer([&](uint32_t hop) {
      if (!has_peer(hop) || !turn.ok()) return;
      st_relaxed_sys(to_[hop] + place(turn, lap), ours_[hop].at(turn.epoch + lap));
    });
  }

  // Before a barrier of the block. Happens-before, in a call of several laps: what the peers
  // re-armed before they sent this lap's signature precedes, by the signature, its acquire and the
  // barrier, this block's pushes of the next lap; behind the last lap, those of the next call. In a
  // call of one lap the ends of the grids serve.
  PYALLREDUCE_FN void check(const Block& block, Turn& turn, uint32_t lap = 0) const {
    block.signer([&](uint32_t hop) {
      if (has_peer(hop)) compare(turn, hop, lap);
    });
  }

  // Behind a barrier of the block that all its lanes reach when they have re-armed what they read
  // in the lap before. Happens-before: that re-arming precedes, by the barrier and this fence, the
  // signature, and so what a peer does behind check() and the barrier that follows.
  PYALLREDUCE_FN void send_lap(const Block& block, const Turn& turn, uint32_t lap) const {
    block.signer([&](uint32_t) { fence_sys(); });
    send(block, turn, lap);
  }

  PYALLREDUCE_FN uint64_t bits() const { return to_.bits() | from_.bits() | ours_.bits(); }

 private:
  // All of this call's signatures but their epochs: read while the grid before still runs, and not
  // when the epoch is here.
  struct Ours {
    uint32_t vectors = 0, shape = 0, tag = 0;

    PYALLREDUCE_FN Words at(uint32_t epoch) const { return signature(epoch, vectors, shape, tag); }
    PYALLREDUCE_FN uint64_t bits() const { return vectors | shape | tag; }
  };

  PYALLREDUCE_FN static uint32_t place(const Turn& turn, uint32_t lap) {
    return turn.slot_of(lap) * kSignatureSlot;
  }

  PYALLREDUCE_FN static bool has_peer(uint32_t hop) { return 0 < hop && hop < kWorld; }

  PYALLREDUCE_FN void compare(Turn& turn, uint32_t hop, uint32_t lap) const {
    Words* mailbox = from_[hop] + place(turn, lap);
    Words theirs = ld_relaxed_sys(mailbox);
    const auto arrived = [&] {
      if (!pending(theirs)) return true;
      theirs = ld_relaxed_sys(mailbox);
      return false;
    };
    const auto missing = [&] { return turn.call.rank_at(pending(theirs) ? hop : 0); };
    if (!turn.wait(missing, Phase::kSignature, arrived)) return;
    if (turn.call.laps > 1) theirs = ld_acquire_sys(mailbox);  // the same again
    st_relaxed_sys(mailbox, armed());
    if (same(theirs, ours_[hop].at(turn.epoch + lap))) return;
    const bool refused = (theirs.w[2] & kRefusedShape) != 0;
    turn.fail(refused ? Stop::kRefused : Stop::kMismatch, turn.call.rank_at(hop), Phase::kSignature,
              0);
    turn.report(theirs);  // at once: the data's lanes would wait, and report, a silent peer
  }

  typename Block::template PerLane<Words*> to_;
  typename Block::template PerLane<Words*> from_;
  typename Block::template PerLane<Ours> ours_;
};

// The start of a block's part of a call: no other call of this rank may be in this block.
template <typename Block>
PYALLREDUCE_FN void enter(const Block& block, Turn& turn) {
  block.signer([&](uint32_t lane) {
    if (lane != kOwnerLane) return;
    const uint32_t rank = turn.call.rank;
    if (!turn.ok()) {  // a stopped generation: the host has to learn it from this call too
      turn.fail(turn.stop, rank, Phase::kNone, 0);
      if (turn.block == 0) ++turn.call.record->drained;  // calls of a rank run one by one
    } else if (atom_exch_relaxed_gpu(turn.owner_word(), 1) != 0) {
      turn.fail(Stop::kOverlap, rank, Phase::kNone, 0);
      // At once: the other lanes, and the other call, would wait until their deadline. The record
      // follows when the block leaves.
      st_relaxed_sys(&turn.control->stop, stop_word(turn.generation, turn.stop));
    }
  });
}

// Behind a barrier of the block: every lane has read the epoch, so that one may advance it. Not at
// the call's end: the next call would read the epoch while this store is under way.
template <typename Block>
PYALLREDUCE_FN void advance_by_owner(const Block& block, const Turn& turn) {
  block.signer([&](uint32_t lane) {
    if (lane == kOwnerLane) st_relaxed_sys(&turn.epoch_word->value, turn.epoch + turn.call.laps);
  });
}

// The end of a block's part of a call.
PYALLREDUCE_FN void let_next_in(const Turn& turn) { st_relaxed_sys(turn.owner_word(), 0); }
template <typename Block>
PYALLREDUCE_FN void leave(const Block& block, Turn& turn) {
  if (__builtin_expect(turn.failed, 0)) turn.report(Words{});
  block.leader([&] { let_next_in(turn); });
}
// Where lanes re-arm before the last barrier all that they read: behind it the owner's lane, with
// no output to store, is the first that has time.
template <typename Block>
PYALLREDUCE_FN void leave_by_owner(const Block& block, Turn& turn) {
  if (__builtin_expect(turn.failed, 0)) turn.report(Words{});
  block.signer([&](uint32_t lane) {
    if (lane == kOwnerLane) let_next_in(turn);
  });
}

// A rank that can't join a call says so in the call's place of every block: it does not know the
// grid. No epoch advances; the generation ends here, and a new one starts at the next call
// (native.py). Its own calls until then, a graph's replays, drain: their signatures would take the
// refusal's place before a peer has read it.
template <int kWorld, typename Block>
PYALLREDUCE_FN void announce_refusal(const Block& block, const Call& call) {
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  grid_dependency_wait(turn.bits());
  turn.begin();
  turn.stop = Stop::kNone;  // said in any case: another block may have raised our stop word by now
  signatures.send(block, turn);
  block.leader(
      [&] { st_relaxed_sys(&turn.control->stop, stop_word(turn.generation, Stop::kPeer)); });
}

}  // namespace pyallreduce
