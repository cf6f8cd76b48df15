// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One-shot push where each warp of a block goes alone: its first lane waits for the signatures (and
// with it those that have no vector), each other one for a vector, all of them by the same polls.
// No warp waits for another. What is sent, and where, is as in one_shot.h.
#pragma once

#include "protocol/one_shot.h"

namespace pyallreduce {

constexpr uint32_t kSignatureLane = 0;

template <typename T, int kWorld, typename Warp>
class OneShotByWarps {
 public:
  PYALLREDUCE_FN OneShotByWarps(Warp& warp, const Call& call)
      : warp_(warp),
        call_(call),
        share_(call.tile, warp.index, vectors_of<T>(call.elements)),
        skipped_(warp.place * kDataLanes),
        message_(call, share_.first),
        turn_(call, warp.index) {}

  PYALLREDUCE_FN void run() {
    each([&](uint32_t lane, Lane& l) { prepare(lane, l); });
    // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
    // pushes.
    grid_dependency_wait(turn_.bits() | lanes_.bits() | message_.bits());
    // Before the epoch is read, so that both loads are in flight together.
    each([&](uint32_t lane, Lane& l) {
      if (l.elements > 0) l.mine = message_.load(at(lane), l.source);
    });
    turn_.begin();
    each([&](uint32_t, Lane& l) { push(l); });
    // Not before: the next grid's start would hold up our pushes.
    launch_dependents();
    each([&](uint32_t, Lane& l) { read(l); });
    // Behind the first reads, which are in flight while its answer is. One warp claims the block.
    enter(warp_, turn_, warp_.place == 0);
    each([&](uint32_t, Lane& l) { take(l); });
    // No output before every signature is checked.
    if (__builtin_expect(warp_.all(turn_.ok()), 1)) {
      each([&](uint32_t, Lane& l) { store(l); });
    } else {
      if (turn_.stop == Stop::kMismatch && !turn_.failed) differs();
      // The signature's lane, if it is among those that failed: it knows most.
      if (warp_.first(turn_.failed)) turn_.report(theirs_);
      turn_.join();
      each([&](uint32_t, Lane& l) { store_part<T>(l.out, l.elements, poison()); });
    }
    leave();
  }

 private:
  // What a lane carries from one phase to the next.
  struct Lane {
    bool sends;         // a vector, or the block's signature
    uint32_t elements;  // of its vector; without one it has the signature
    const Words* source;
    Words* out;               // without a vector, the block's state
    Words* to[kWorld - 1];    // at rank + 1, rank + 2, ...
    Words* from[kWorld - 1];  // peer 0's, peer 1's, ... here
    uint32_t slot;            // vectors from its mailboxes in one slot to those in the next
    Words mine, sum;
    Words others[kWorld - 1];

    PYALLREDUCE_FN uint64_t bits() const {
      uint64_t all = reinterpret_cast<uint64_t>(source) | slot;
#pragma unroll
      for (uint32_t i = 0; i < kWorld - 1; ++i) {
        all |= reinterpret_cast<uint64_t>(to[i]) | reinterpret_cast<uint64_t>(from[i]);
      }
      return all;
    }
  };

  template <typename Use>
  PYALLREDUCE_FN void each(Use use) {
    warp_.data([&](uint32_t lane) { use(lane, lanes_[lane]); });
  }

  PYALLREDUCE_FN void prepare(uint32_t lane, Lane& l) {
    const bool has_vector = lane != kSignatureLane && at(lane) < share_.count;
    l.sends = has_vector || (lane == kSignatureLane && warp_.place == 0);
    l.elements = settled(has_vector ? message_.elements(at(lane)) : 0);
    l.source = pinned(message_.at(at(lane)));
    l.out = settled(has_vector ? message_.out(at(lane)) : reinterpret_cast<Words*>(turn_.words));
    l.slot = !has_vector ? kSignatureSlot : Mailboxes<kWorld>::shot_of(call_.layout.one_shot_tile);
    if (!has_vector) {
      find(l, [&](const Slab& slab, uint32_t /*peer*/, uint32_t sender) {
        return slab.signature(turn_.block, sender);
      });
    } else {
      find(l, [&](const Slab& slab, uint32_t peer, uint32_t /*sender*/) {
        return slab.one_shot(turn_.block, peer) + Slab::spread(at(lane));
      });
    }
    l.mine = signature_of(call_, 0);  // without its epoch; data take its place
  }

  // `place(slab, peer, sender)`: this lane's mailbox in a slab for what that peer of its owner sends.
  template <typename Place>
  PYALLREDUCE_FN void find(Lane& l, Place place) {
#pragma unroll
    for (uint32_t i = 0; i < kWorld - 1; ++i) {
      const uint32_t me = peer_at<kWorld>(i + 1, call_.rank);
      l.to[i] = pinned(place(call_.slab_at(i + 1), me, call_.rank));
      l.from[i] = pinned(place(call_.own(), i, rank_of(i, call_.rank)));
      l.others[i] = Words{};
    }
  }

  PYALLREDUCE_FN void push(Lane& l) {
    // What is summed here is what the peers get.
    l.mine = canonical(l.mine);
    if (l.elements == 0) l.mine.w[0] = turn_.epoch & kEpochMask;
#pragma unroll
    for (uint32_t i = 0; i < kWorld - 1; ++i) {
      l.to[i] += turn_.slot * l.slot;
      l.from[i] += turn_.slot * l.slot;
      // After an abort nothing is published.
      if (l.sends && turn_.ok()) st_relaxed_sys(l.to[i], l.mine);
    }
  }

  PYALLREDUCE_FN void read(Lane& l) {
#pragma unroll
    for (uint32_t i = 0; i < kWorld - 1; ++i) l.others[i] = ld_relaxed_sys(l.from[i]);
  }

  PYALLREDUCE_FN void take(Lane& l) {
    const auto arrived = [&] {
      uint32_t top = 0;
#pragma unroll
      for (uint32_t i = 0; i < kWorld - 1; ++i) top = max_of(top, largest(l.others[i]));
      if (top != kSentinel) return true;
      read(l);
      return false;
    };
    const auto missing = [&] {
      uint32_t from = call_.rank;
#pragma unroll
      for (uint32_t i = kWorld - 1; i-- > 0;) {
        if (pending(l.others[i])) from = rank_of(i, call_.rank);
      }
      return Awaited{from, l.elements == 0 ? Phase::kSignature : Phase::kShards};
    };
    // Of a peer in another call no data may ever come: each look asks for its signature too.
    if (!turn_.wait(missing, arrived, [&] { return differs(); })) return;
    bool agrees = true;
#pragma unroll
    for (uint32_t i = 0; i < kWorld - 1; ++i) {
      agrees &= l.elements > 0 || same(l.others[i], l.mine);
    }
    if (!agrees) turn_.stop = Stop::kMismatch;
    // Armed again here, where the lanes wait anyway.
#pragma unroll
    for (uint32_t i = 0; i < kWorld - 1; ++i) {
      if (l.elements > 0) st_relaxed_sys(l.from[i], armed());
    }
    l.sum = sum_of<T, kWorld>(l.mine, l.others, call_.rank);
  }

  PYALLREDUCE_FN bool differs() { return Signatures<kWorld, Warp>::differs(turn_, theirs_); }

  PYALLREDUCE_FN static void store(const Lane& l) {
    if (__builtin_expect(l.elements == kElements<T>, 1)) {
      st_weak(l.out, l.sum);
    } else {
      store_part<T>(l.out, l.elements, l.sum);
    }
  }

  // The block's last warp arms the signatures again, and lets the next call in. No order is needed:
  // a warp votes, and so counts, when it has used what it read of signatures and epoch.
  PYALLREDUCE_FN void leave() {
    each([&](uint32_t lane, Lane& l) {
      if (lane != kSignatureLane || !warp_.is_last()) return;
#pragma unroll
      for (uint32_t i = 0; i < kWorld - 1; ++i) {
        if (turn_.ok()) st_relaxed_sys(l.from[i], armed());
      }
      turn_.words = reinterpret_cast<BlockWord*>(l.out);  // ptxas would make it anew
      advance(turn_);
      let_next_in(turn_);
    });
  }

  // Which of the block's vectors is this lane's.
  PYALLREDUCE_FN uint32_t at(uint32_t lane) const {
    return skipped_ + lane - (lane == kSignatureLane ? 0 : 1);
  }

  Warp& warp_;
  const Call& call_;
  const Share share_;       // the block's
  const uint32_t skipped_;  // vectors of it: those of the warps before
  const Message<T> message_;
  Turn turn_;
  typename Warp::template PerLane<Lane> lanes_;
  Words theirs_{};  // the signature that differs, if one does
};

template <typename T, int kWorld, typename Warp>
PYALLREDUCE_FN void one_shot_by_warps(Warp& warp, const Call& call) {
  OneShotByWarps<T, kWorld, Warp>(warp, call).run();
}

}  // namespace pyallreduce
