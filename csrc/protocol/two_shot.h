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
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  // All shards of a step are read before the first is sent, as far as the registers go.
  constexpr bool kTogether = kWorld <= 4;
  const uint32_t rank = call.rank;
  const uint32_t vectors = vectors_of<T>(call.elements);
  const uint32_t part = (vectors + kWorld - 1) / kWorld;
  const uint32_t start = block.index * call.tile;
  const Message<T> message(call, start);
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  const auto place = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.block, sender);
  };
  const Mailboxes<kWorld> boxes(call, call.layout.two_shot_tile, place);

  // A lane's vector in a step: the i-th of the block's mailbox, the `at`-th behind `start` of each
  // part, and how far the lap's mailboxes are.
  struct Place {
    uint32_t i, at, further;
  };
  const auto each = [&](const Step& step, auto use) {
    block.data([&](uint32_t lane) {
      const uint32_t i = step.done + lane;
      const uint32_t at = step.lap * call.stride + i;
      const uint32_t further = turn.slot_of(step.lap) * kShots * boxes.shot;
      if (i < call.tile && start + at < part) use(lane, Place{i, at, further});
    });
  };
  const auto shard_to = [&](uint32_t hop, const Place& p) { return boxes.to(hop, p.i, p.further); };
  const auto shard_from = [&](uint32_t peer, const Place& p) {
    return boxes.from(peer, p.i, p.further);
  };
  const auto result_to = [&](uint32_t hop, const Place& p) {
    return boxes.to(hop, p.i, p.further + boxes.shot);
  };
  const auto result_from = [&](uint32_t peer, const Place& p) {
    return boxes.from(peer, p.i, p.further + boxes.shot);
  };
  // The last parts may be short.
  const auto exists = [&](uint32_t owner, const Place& p) {
    return owner * part + start + p.at < vectors;
  };
  const auto own = [&](uint32_t owner, const Place& p) {
    return exists(owner, p) ? message.load(owner * part + p.at) : Words{};
  };
  struct Shards {
    Words hop[kWorld - 1];  // for the owners rank+1, rank+2, ...
  };
  const auto read = [&](const Place& p) {
    Shards shards;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      shards.hop[hop - 1] = own((rank + hop) % kWorld, p);
    }
    return shards;
  };
  const auto send = [&](const Place& p, uint32_t hop, const Words& shard) {
    // After an abort nothing is published.
    if (!turn.ok() || !exists((rank + hop) % kWorld, p)) return;
    st_relaxed_sys(shard_to(hop, p), canonical(shard));
  };
  const auto send_all = [&](const Place& p, const Shards& shards) {
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) send(p, hop, shards.hop[hop - 1]);
  };
  const auto scatter = [&](const Place& p) {
    if constexpr (kTogether) {
      send_all(p, read(p));
    } else {
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) send(p, hop, own((rank + hop) % kWorld, p));
    }
  };
  const auto sum = [&](const Place& p) {
    Words others[kWorld - 1];
    const Words mine = message.load(rank * part + p.at);
    const auto box = [&](uint32_t peer) { return shard_from(peer, p); };
    if (!collect(turn, Phase::kShards, others, box)) return poison();
    const Words result = sum_of<T, kWorld>(canonical(mine), others, rank);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      st_relaxed_sys(result_to(hop, p), result);
    }
    return result;
  };
  // The owner stores the value that it sent: all ranks hold the same bits.
  const auto finish = [&](const Place& p, const Words& result) {
    message.store(rank * part + p.at, turn.ok() ? result : poison());
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      st_relaxed_sys(shard_from(peer, p), armed());
    }
  };
  const auto gather = [&](const Place& p) {
    Words results[kWorld - 1]{};
    uint32_t owners = 0;  // bit p: peer p owns such a vector
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      owners |= (exists(rank_of(peer, rank), p) ? 1u : 0u) << peer;
    }
    const auto box = [&](uint32_t peer) { return result_from(peer, p); };
    const bool arrived = collect(turn, Phase::kResults, results, box, owners);
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      if ((owners >> peer & 1u) == 0) continue;
      const Words result = arrived ? results[peer] : poison();
      message.store(rank_of(peer, rank) * part + p.at, result);
      st_relaxed_sys(box(peer), armed());
    }
  };

  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait(turn.bits() | signatures.bits() | boxes.bits() | message.bits() | part);
  Step scattered, summed, gathered;
  typename Block::template PerLane<Shards> first;
  if constexpr (kTogether) {
    // Before the epoch is read, so that all these loads are in flight together.
    each(scattered, [&](uint32_t lane, const Place& p) { first[lane] = read(p); });
  }
  turn.begin();
  signatures.send(block, turn);
  if constexpr (kTogether) {
    each(scattered, [&](uint32_t lane, const Place& p) { send_all(p, first[lane]); });
    scattered.advance(call.tile, block.lanes);
  }
  const auto scatter_step = [&] {
    each(scattered, [&](uint32_t, const Place& p) { scatter(p); });
    scattered.advance(call.tile, block.lanes);
  };
  if constexpr (!kTogether) scatter_step();
  // Not before: the next grid's start would hold up our pushes.
  launch_dependents();
  enter(block, turn);

  // A block of one step needs no second round.
  const uint32_t lag = block.lanes < call.tile ? 1 : 0;
  typename Block::template PerLane<Words> kept;
#pragma unroll 1
  for (uint32_t step = 0; gathered.lap < call.laps; ++step) {
    const uint32_t lap = step == 0 ? 0 : scattered.lap;
    const bool ends = 0 < lap && lap < call.laps && scattered.last(call.tile, block.lanes);
    if (step == 0 || ends) signatures.check(block, turn, lap);
    scatter_step();
    if (block.lanes > kFewLanes && !block.all(turn.ok())) turn.join();
    each(summed, [&](uint32_t lane, const Place& p) {
      if (exists(rank, p)) kept[lane] = sum(p);
    });
    // Here wait: output for the call's signatures, the next lap's shards for this lap's signatures,
    // this lap's own signature for the last re-arming of the lap before, and fast warps for slow
    // ones.
    if (!block.all(turn.ok())) turn.join();
    if (0 < gathered.lap && gathered.done == 0) signatures.send_lap(block, turn, gathered.lap);
    each(summed, [&](uint32_t lane, const Place& p) {
      if (exists(rank, p)) finish(p, kept[lane]);
    });
    summed.advance(call.tile, block.lanes);
    if (step < lag) continue;
    each(gathered, [&](uint32_t, const Place& p) { gather(p); });
    gathered.advance(call.tile, block.lanes);
  }
  leave(block, turn);
}

}  // namespace pyallreduce
