// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-shot push: rank r owns the r-th part of the message. Everybody sends each part to its owner
// (reduce-scatter), the owner sums it and sends the result to everybody (all-gather). Two hops,
// 2(N-1)/N of the message on the wire.
#pragma once

#include "protocol/mailboxes.h"
#include "protocol/share.h"
#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  // Steps by which shards run ahead of the sums, and the sums of the gathers.
  constexpr uint32_t kAhead = 4;
  // All shards of a step are read before the first is sent, as far as the registers go.
  constexpr bool kTogether = kWorld <= 4;
  const uint32_t rank = call.rank;
  const uint32_t vectors = vectors_of<T>(call.elements);
  const uint32_t part = (vectors + kWorld - 1) / kWorld;
  const Share share(call.tile, block.index, part);
  const Message<T> message(call, share.first);
  // This block's i-th vector of the part that `owner` owns; the last parts may be short.
  const auto vector = [&](uint32_t owner, uint32_t i) { return owner * part + i; };
  const auto exists = [&](uint32_t owner, uint32_t i) {
    return vector(owner, i) + share.first < vectors;
  };
  const auto own = [&](uint32_t owner, uint32_t i) {
    return exists(owner, i) ? message.load(vector(owner, i)) : Words{};
  };
  struct Shards {
    Words hop[kWorld - 1];  // for the owners rank+1, rank+2, ...
  };
  const auto read = [&](uint32_t i) {
    Shards shards;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      shards.hop[hop - 1] = own((rank + hop) % kWorld, i);
    }
    return shards;
  };
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  const auto place = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.block, sender);
  };
  Mailboxes<kWorld> boxes(call, call.layout.two_shot_tile, place);

  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait(turn.bits() | signatures.bits() | boxes.bits() | message.bits() |
                       share.count);
  typename Block::template PerLane<Shards> first;
  if constexpr (kTogether) {
    // Before the epoch is read, so that all these loads are in flight together.
    share.each(block, 0, [&](uint32_t lane, uint32_t i) { first[lane] = read(i); });
  }
  turn.begin();
  const Mailboxes<kWorld> shards_of = boxes.further(turn.slot * kShots * boxes.shot);
  const Mailboxes<kWorld> results_of = shards_of.further(boxes.shot);

  const auto send = [&](uint32_t i, uint32_t hop, const Words& shard) {
    // After an abort nothing is published.
    if (!turn.ok() || !exists((rank + hop) % kWorld, i)) return;
    st_relaxed_sys(shards_of.to(hop, i), canonical(shard));
  };
  const auto send_all = [&](uint32_t i, const Shards& shards) {
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) send(i, hop, shards.hop[hop - 1]);
  };
  const auto scatter = [&](uint32_t i) {
    if constexpr (kTogether) {
      send_all(i, read(i));
    } else {
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) send(i, hop, own((rank + hop) % kWorld, i));
    }
  };
  const auto sum = [&](uint32_t i) {
    Words others[kWorld - 1];
    const Words mine = own(rank, i);
    const auto box = [&](uint32_t peer) { return shards_of.from(peer, i); };
    if (!collect(turn, Phase::kShards, others, box)) return poison();
    const Words result = sum_of<T, kWorld>(canonical(mine), others, rank);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      st_relaxed_sys(results_of.to(hop, i), result);
    }
    return result;
  };
  // The owner stores the value that it sent: all ranks hold the same bits.
  const auto finish = [&](uint32_t i, const Words& result) {
    message.store(vector(rank, i), turn.ok() ? result : poison());
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      st_relaxed_sys(shards_of.from(peer, i), armed());
    }
  };
  const auto gather = [&](uint32_t i) {
    Words results[kWorld - 1]{};
    uint32_t owners = 0;  // bit p: peer p owns such a vector
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      owners |= (exists(rank_of(peer, rank), i) ? 1u : 0u) << peer;
    }
    const auto box = [&](uint32_t peer) { return results_of.from(peer, i); };
    const bool arrived = collect(turn, Phase::kResults, results, box, owners);
#pragma unroll
    for (uint32_t peer = 0; peer < kWorld - 1; ++peer) {
      if ((owners >> peer & 1u) == 0) continue;
      const Words result = arrived ? results[peer] : poison();
      message.store(vector(rank_of(peer, rank), i), result);
      st_relaxed_sys(box(peer), armed());
    }
  };

  signatures.send(block, turn);
  if constexpr (kTogether) {
    share.each(block, 0, [&](uint32_t lane, uint32_t i) { send_all(i, first[lane]); });
  }
  for (uint32_t step = kTogether ? 1 : 0; step < kAhead; ++step) {
    share.each(block, step, [&](uint32_t, uint32_t i) { scatter(i); });
  }
  // Not before: the next grid's start would hold up our pushes.
  launch_dependents();
  enter(block, turn);
  signatures.check(block, turn);
  typename Block::template PerLane<Words> kept;
  for (uint32_t step = 0; step < kAhead || share.has(step - kAhead, block.lanes); ++step) {
    share.each(block, step + kAhead, [&](uint32_t, uint32_t i) { scatter(i); });
    share.each(block, step, [&](uint32_t lane, uint32_t i) {
      if (exists(rank, i)) kept[lane] = sum(i);
    });
    // No output before every signature is checked.
    if (step == 0 && !block.all(turn.ok())) turn.join();
    share.each(block, step, [&](uint32_t lane, uint32_t i) {
      if (exists(rank, i)) finish(i, kept[lane]);
    });
    if (step < kAhead) continue;
    share.each(block, step - kAhead, [&](uint32_t, uint32_t i) { gather(i); });
  }
  leave(block, turn);
}

}  // namespace pyallreduce
