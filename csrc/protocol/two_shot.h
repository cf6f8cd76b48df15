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

template <typename T, int kWorld, uint32_t kFlight, typename Block>
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  // Steps by which shards run ahead of the sums, and the sums of the gathers.
  constexpr uint32_t kAhead = 4;
  // All shards of a lot are read before the first is sent, as far as the registers go.
  constexpr bool kTogether = kWorld <= 4;
  using Lot = Batch<kFlight>;
  struct Vectors {
    Words of[kFlight];
  };
  struct Shards {
    Vectors hop[kWorld - 1];  // for the owners rank + 1, rank + 2, ...
  };
  const uint32_t rank = call.rank;
  const uint32_t vectors = vectors_of<T>(call.elements);
  const uint32_t part = (vectors + kWorld - 1) / kWorld;
  const Share<kFlight> share(call.tile, block.index, part);
  // This block's i-th vector of the part that `owner` owns; the last parts may be short.
  const auto vector = [&](uint32_t owner, uint32_t i) { return owner * part + share.first + i; };
  const auto exists = [&](uint32_t owner, const Lot& lot, uint32_t f) {
    return lot.has(f) && vector(owner, lot.at(f)) < vectors;
  };
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  const auto place = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.block, sender);
  };
  const Mailboxes<kWorld> boxes(call, call.layout.two_shot_tile, place);
  const auto read = [&](uint32_t owner, const Lot& lot) {
    Vectors own;
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      own.of[f] = load<T>(call.in, vector(owner, lot.at(f)), call.elements);
    }
    return own;
  };
  const auto read_shards = [&](const Lot& lot) {
    Shards shards;
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      shards.hop[hop - 1] = read((rank + hop) % kWorld, lot);
    }
    return shards;
  };

  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait(turn.bits() | signatures.bits() | boxes.bits() | share.count);
  launch_dependents();
  typename Block::template PerLane<Shards> first;
  if constexpr (kTogether) {
    // Before the epoch is read, so that all these loads are in flight together.
    share.each(block, 0, [&](uint32_t lane, const Lot& lot) { first[lane] = read_shards(lot); });
  }
  turn.begin();
  const Mailboxes<kWorld> shards_of = boxes.further(turn.slot * kShots * boxes.shot);
  const Mailboxes<kWorld> results_of = shards_of.further(boxes.shot);

  const auto send = [&](const Lot& lot, uint32_t hop, const Vectors& shard) {
    if (!turn.ok()) return;  // after an abort nothing is published
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      if (!exists((rank + hop) % kWorld, lot, f)) continue;
      st_relaxed_sys(shards_of.to(hop) + lot.at(f), canonical(shard.of[f]));
    }
  };
  const auto send_all = [&](const Lot& lot, const Shards& shards) {
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) send(lot, hop, shards.hop[hop - 1]);
  };
  const auto scatter = [&](const Lot& lot) {
    if constexpr (kTogether) {
      send_all(lot, read_shards(lot));
    } else {
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) send(lot, hop, read((rank + hop) % kWorld, lot));
    }
  };
  const auto sum = [&](const Lot& lot) {
    Words by_rank[kFlight][kWorld];
    Vectors result = read(rank, lot);
    const auto others = [&](uint32_t f, uint32_t r) { return r != rank && exists(rank, lot, f); };
    const auto box = [&](uint32_t f, uint32_t r) { return shards_of.from(r) + lot.at(f); };
    const bool arrived = collect(turn, Phase::kShards, by_rank, others, box);
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        by_rank[f][r] = r == rank ? canonical(result.of[f]) : by_rank[f][r];
      }
      result.of[f] = arrived ? reduce<T>(by_rank[f]) : poison();
      if (!arrived || !exists(rank, lot, f)) continue;
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) {
        st_relaxed_sys(results_of.to(hop) + lot.at(f), result.of[f]);
      }
    }
    return result;
  };
  // The owner stores the value that it sent: all ranks hold the same bits.
  const auto finish = [&](const Lot& lot, const Vectors& sums) {
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      if (!exists(rank, lot, f)) continue;
      const Words v = turn.ok() ? sums.of[f] : poison();
      store<T>(call.out, vector(rank, lot.at(f)), call.elements, v);
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (r != rank) st_relaxed_sys(shards_of.from(r) + lot.at(f), armed());
      }
    }
  };
  const auto gather = [&](const Lot& lot) {
    Words by_rank[kFlight][kWorld];
    const auto owners = [&](uint32_t f, uint32_t r) { return r != rank && exists(r, lot, f); };
    const auto box = [&](uint32_t f, uint32_t r) { return results_of.from(r) + lot.at(f); };
    const bool arrived = collect(turn, Phase::kResults, by_rank, owners, box);
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (!owners(f, r)) continue;
        const Words v = arrived ? by_rank[f][r] : poison();
        store<T>(call.out, vector(r, lot.at(f)), call.elements, v);
        st_relaxed_sys(box(f, r), armed());
      }
    }
  };

  signatures.send(block, turn);
  if constexpr (kTogether) {
    share.each(block, 0, [&](uint32_t lane, const Lot& lot) { send_all(lot, first[lane]); });
  }
  for (uint32_t step = kTogether ? 1 : 0; step < kAhead; ++step) {
    share.each(block, step, [&](uint32_t, const Lot& lot) { scatter(lot); });
  }
  enter(block, turn);
  signatures.check(block, turn);
  typename Block::template PerLane<Vectors> kept;
  for (uint32_t step = 0; step == 0 || step < share.steps(block.lanes) + kAhead; ++step) {
    share.each(block, step + kAhead, [&](uint32_t, const Lot& lot) { scatter(lot); });
    share.each(block, step, [&](uint32_t lane, const Lot& lot) { kept[lane] = sum(lot); });
    // No output before every signature is checked.
    if (step == 0 && !block.all(turn.ok())) turn.join();
    share.each(block, step, [&](uint32_t lane, const Lot& lot) { finish(lot, kept[lane]); });
    if (step < kAhead) continue;
    share.each(block, step - kAhead, [&](uint32_t, const Lot& lot) { gather(lot); });
  }
  leave(block, turn);
}

}  // namespace pyallreduce
