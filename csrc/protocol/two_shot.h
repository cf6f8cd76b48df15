// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-shot push: rank r owns the r-th part of the message. Everybody sends each part to its owner
// (reduce-scatter), the owner sums it and sends the result to everybody (all-gather). Two hops,
// 2(N-1)/N of the message on the wire.
//
// A block goes through its mailboxes in laps, each a call of its own to the mailboxes: with a slot,
// an epoch and signatures. Laps overlap: shards of the next one are on the wire while this one's
// results are awaited. docs/design.md says why no mailbox is overwritten.
#pragma once

#include "protocol/mailboxes.h"
#include "protocol/message.h"
#include "protocol/signature.h"

namespace pyallreduce {

// The fewest steps of a lap that another follows. Shards run one step ahead of the sums, and sums
// one ahead of the gathers. So a lap's signature leaves in its step 1, when the lap before has been
// gathered, and is waited for in its last step but one, before the next lap's first shard is sent:
// with fewer, the ranks would wait for each other.
constexpr uint32_t kLeastSteps = 4;
// Warps that poll hold up the stores of others. Where a block has more than these, a barrier parks
// them until all have pushed and the peers' signatures are here: data are not far behind.
constexpr uint32_t kFewLanes = 128;

// A step of a block's way through a message of several laps, in each of which it has `tile`
// vectors.
struct Step {
  uint32_t lap = 0;
  uint32_t done = 0;  // vectors of the lap

  PYALLREDUCE_FN bool last(uint32_t tile, uint32_t lanes) const { return done + lanes >= tile; }
  PYALLREDUCE_FN void advance(uint32_t tile, uint32_t lanes) {
    const bool over = last(tile, lanes);
    done = over ? 0 : done + lanes;
    lap += over ? 1 : 0;
  }
};

template <typename T, int kWorld, typename Block>
class TwoShot {
 public:
  PYALLREDUCE_FN TwoShot(Block& block, const Call& call)
      : block_(block),
        call_(call),
        rank_(call.rank),
        vectors_(vectors_of<T>(call.elements)),
        part_((vectors_ + kWorld - 1) / kWorld),
        start_(block.index * call.tile),
        message_(call, start_),
        turn_(call, block.index),
        signatures_(block, call),
        boxes_(call, block.index) {}

  PYALLREDUCE_FN void run() {
    typename Block::template PerLane<Sources> sources;
    if constexpr (kTogether) {
      each(scattered_, [&](uint32_t lane, const Place& p) { sources[lane] = sources_of(p); });
    }
    // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
    // pushes.
    grid_dependency_wait(turn_.bits() | signatures_.bits() | boxes_.bits() | sources.bits() |
                         message_.bits() | part_);
    typename Block::template PerLane<Shards> first;
    if constexpr (kTogether) {
      // Before the epoch is read, so that all these loads are in flight together.
      each(scattered_,
           [&](uint32_t lane, const Place& p) { first[lane] = read(p, sources[lane]); });
    }
    turn_.begin();
    signatures_.send(block_, turn_);
    if constexpr (kTogether) {
      each(scattered_, [&](uint32_t lane, const Place& p) { send_all(p, first[lane]); });
      scattered_.advance(call_.tile, block_.lanes);
    } else {
      scatter();
    }
    // Not before: the next grid's start would hold up our pushes.
    launch_dependents();
    enter(block_, turn_);
    // A block of one step needs no second round.
    const uint32_t lag = block_.lanes < call_.tile ? 1 : 0;
#pragma unroll 1
    for (uint32_t step = 0; gathered_.lap < call_.laps; ++step) {
      check(step);
      scatter();
      if (block_.lanes > kFewLanes && !block_.all(turn_.ok())) turn_.join();
      sum();
      if (step == 0) advance_by_owner(block_, turn_);
      if (step >= lag) gather();
    }
    leave(block_, turn_);
  }

 private:
  // All shards of a step are read before the first is sent, as far as the registers go.
  static constexpr bool kTogether = kWorld <= 4;
  // A lane's vector in a step: the i-th of the block's mailbox in its lap, the `at`-th behind the
  // block's start of each part, and how far the lap's mailboxes are.
  struct Place {
    uint32_t i, at, further;
  };
  // For the owners rank+1, rank+2, ...: a lane's vectors, and where they are read.
  struct Shards {
    Words hop[kWorld - 1];
  };
  struct Sources {
    const Words* hop[kWorld - 1];

    PYALLREDUCE_FN uint64_t bits() const {
      uint64_t all = 0;
#pragma unroll
      for (const Words* source : hop) all |= reinterpret_cast<uint64_t>(source);
      return all;
    }
  };

  // ---- the steps of the block ------------------------------------------------------------------

  // The signatures of a lap, before the first shard of the next one is sent.
  PYALLREDUCE_FN void check(uint32_t step) {
    const uint32_t lap = step == 0 ? 0 : scattered_.lap;
    const bool ends = 0 < lap && lap < call_.laps && scattered_.last(call_.tile, block_.lanes);
    if (step == 0 || ends) signatures_.check(block_, turn_, lap);
  }

  PYALLREDUCE_FN void scatter() {
    each(scattered_, [&](uint32_t, const Place& p) {
      if constexpr (kTogether) {
        send_all(p, read(p, sources_of(p)));
      } else {
#pragma unroll
        for (uint32_t hop = 1; hop < kWorld; ++hop) send(p, hop, own((rank_ + hop) % kWorld, p));
      }
    });
    scattered_.advance(call_.tile, block_.lanes);
  }

  PYALLREDUCE_FN void sum() {
    typename Block::template PerLane<Words> kept;
    each(summed_, [&](uint32_t lane, const Place& p) {
      if (exists(rank_, p)) kept[lane] = sum_and_send(p);
    });
    // Here wait: output for the call's signatures, the next lap's shards for this lap's signatures,
    // this lap's own signature for the last re-arming of the lap before, and fast warps for slow
    // ones.
    if (!block_.all(turn_.ok())) turn_.join();
    if (0 < gathered_.lap && gathered_.done == 0) {
      signatures_.send_lap(block_, turn_, gathered_.lap);
    }
    each(summed_, [&](uint32_t lane, const Place& p) {
      // The value that was sent: all ranks hold the same bits.
      if (!exists(rank_, p)) return;
      message_.store(rank_ * part_ + p.at, turn_.ok() ? kept[lane] : poison());
    });
    summed_.advance(call_.tile, block_.lanes);
  }

  PYALLREDUCE_FN void gather() {
    each(gathered_, [&](uint32_t, const Place& p) { take_results(p); });
    gathered_.advance(call_.tile, block_.lanes);
  }

  // ---- one lane's part of them -----------------------------------------------------------------

  PYALLREDUCE_FN Sources sources_of(const Place& p) const {
    Sources sources;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      sources.hop[hop - 1] = pinned(message_.at(shard((rank_ + hop) % kWorld, p)));
    }
    return sources;
  }
  PYALLREDUCE_FN Shards read(const Place& p, const Sources& sources) const {
    Shards shards;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      shards.hop[hop - 1] = message_.load(shard((rank_ + hop) % kWorld, p), sources.hop[hop - 1]);
    }
    return shards;
  }
  PYALLREDUCE_FN void send_all(const Place& p, const Shards& shards) const {
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) send(p, hop, shards.hop[hop - 1]);
  }
  PYALLREDUCE_FN void send(const Place& p, uint32_t hop, const Words& shard) const {
    // After an abort nothing is published.
    if (!turn_.ok() || !exists((rank_ + hop) % kWorld, p)) return;
    st_relaxed_sys(boxes_.to(hop, p.i, p.further), canonical(shard));
  }

  PYALLREDUCE_FN Words sum_and_send(const Place& p) {
    Words others[kWorld - 1];
    const Words mine = message_.load(rank_ * part_ + p.at);
    const auto box = [&](uint32_t peer) { return shard_from(peer, p); };
    if (!collect(turn_, Phase::kShards, others, box)) return poison();
    const Words result = sum_of<T, kWorld>(canonical(mine), others, rank_);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      st_relaxed_sys(boxes_.to(hop, p.i, p.further + boxes_.shot), result);
    }
    return result;
  }

  PYALLREDUCE_FN void take_results(const Place& p) {
    Words results[kWorld - 1]{};
    uint32_t owners = 0;  // bit p: peer p owns such a vector
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      owners |= (exists(rank_of(peer, rank_), p) ? 1u : 0u) << peer;
    }
    const auto box = [&](uint32_t peer) { return result_from(peer, p); };
    const bool arrived = collect(turn_, Phase::kResults, results, box, owners);
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      if ((owners >> peer & 1u) == 0) continue;
      const Words result = arrived ? results[peer] : poison();
      message_.store(rank_of(peer, rank_) * part_ + p.at, result);
    }
  }

  // ---- where things are ------------------------------------------------------------------------

  // `use(lane, place)` for each vector of a step that this block has.
  template <typename Use>
  PYALLREDUCE_FN void each(const Step& step, Use use) const {
    block_.data([&](uint32_t lane) {
      const uint32_t i = step.done + lane;
      const uint32_t at = step.lap * call_.stride + i;
      const uint32_t further = turn_.slot_of(step.lap) * kShots * boxes_.shot;
      if (i < call_.tile && start_ + at < part_) use(lane, Place{i, at, further});
    });
  }
  // The last parts may be short.
  PYALLREDUCE_FN bool exists(uint32_t owner, const Place& p) const {
    return owner * part_ + start_ + p.at < vectors_;
  }
  // Which vector of the message is to be read for that owner. What does not exist is not sent: one
  // of the first part, which does, will do.
  PYALLREDUCE_FN uint32_t shard(uint32_t owner, const Place& p) const {
    return exists(owner, p) ? owner * part_ + p.at : p.at;
  }
  PYALLREDUCE_FN Words own(uint32_t owner, const Place& p) const {
    return exists(owner, p) ? message_.load(owner * part_ + p.at) : Words{};
  }
  PYALLREDUCE_FN Words* shard_from(uint32_t peer, const Place& p) const {
    return boxes_.from(peer, p.i, p.further);
  }
  PYALLREDUCE_FN Words* result_from(uint32_t peer, const Place& p) const {
    return boxes_.from(peer, p.i, p.further + boxes_.shot);
  }

  Block& block_;
  const Call& call_;
  const uint32_t rank_;
  const uint32_t vectors_;
  const uint32_t part_;   // vectors of each owner's
  const uint32_t start_;  // of this block in each part
  const Message<T> message_;
  Turn turn_;
  const Signatures<kWorld, Block> signatures_;
  const Mailboxes<kWorld> boxes_;
  Step scattered_, summed_, gathered_;
};

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  TwoShot<T, kWorld, Block>(block, call).run();
}

}  // namespace pyallreduce
