// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-shot push: rank r owns the r-th part of the message. Everybody sends each part to its owner
// (reduce-scatter), the owner sums it and sends the result to everybody (all-gather). Two hops,
// 2(N-1)/N of the message on the wire.
#pragma once

#include "protocol/share.h"
#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait();
  launch_dependents();
  const uint32_t rank = call.rank;
  const uint32_t vectors = vectors_of<T>(call.elements);
  const uint32_t part = (vectors + kWorld - 1) / kWorld;
  const Share share(call.tile, block.index, part);
  // This block's i-th vector of the part that `owner` owns; the last parts may be short.
  const auto vector = [&](uint32_t owner, uint32_t i) { return owner * part + share.first + i; };
  const auto exists = [&](uint32_t owner, uint32_t i) { return vector(owner, i) < vectors; };
  const auto own = [&](uint32_t owner, uint32_t i) {
    return load<T>(call.in, vector(owner, i), call.elements);
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
  typename Block::template PerLane<Shards> first;
  // Before the epoch is read, so that all these loads are in flight together.
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { first[lane] = read(i); });
  Turn turn(call, block.index);
  const auto shards_of = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.slot, 0, turn.block, sender);
  };
  const auto results_of = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.slot, 1, turn.block, sender);
  };

  const auto scatter = [&](uint32_t i, const Shards& shards) {
    if (!turn.ok()) return;  // after an abort nothing is published
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      const uint32_t owner = (rank + hop) % kWorld;
      if (exists(owner, i)) {
        st_relaxed_sys(shards_of(turn.peer(owner), rank) + i, canonical(shards.hop[hop - 1]));
      }
    }
  };
  const auto sum = [&](uint32_t i) {
    Words by_rank[kWorld];
    const Words mine = canonical(own(rank, i));
    const auto others = [&](uint32_t r) { return r != rank; };
    const auto box = [&](uint32_t r) { return shards_of(turn.mine(), r) + i; };
    if (!collect(turn, Phase::kShards, by_rank, others, box)) return poison();
#pragma unroll
    for (uint32_t r = 0; r < kWorld; ++r) by_rank[r] = r == rank ? mine : by_rank[r];
    const Words result = reduce<T>(by_rank);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      st_relaxed_sys(results_of(turn.peer((rank + hop) % kWorld), rank) + i, result);
    }
    return result;
  };
  // The owner stores the value that it sent: all ranks hold the same bits.
  const auto finish = [&](uint32_t i, const Words& result) {
    store<T>(call.out, vector(rank, i), call.elements, turn.ok() ? result : poison());
#pragma unroll
    for (uint32_t r = 0; r < kWorld; ++r) {
      if (r != rank) st_relaxed_sys(shards_of(turn.mine(), r) + i, armed());
    }
  };
  const auto gather = [&](uint32_t i) {
    Words by_rank[kWorld];
    const auto owners = [&](uint32_t r) { return r != rank && exists(r, i); };
    const auto box = [&](uint32_t r) { return results_of(turn.mine(), r) + i; };
    const bool arrived = collect(turn, Phase::kResults, by_rank, owners, box);
#pragma unroll
    for (uint32_t r = 0; r < kWorld; ++r) {
      if (!owners(r)) continue;
      store<T>(call.out, vector(r, i), call.elements, arrived ? by_rank[r] : poison());
      st_relaxed_sys(box(r), armed());
    }
  };

  announce<kWorld>(block, turn);
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { scatter(i, first[lane]); });
  for (uint32_t step = 1; step < kAhead; ++step) {
    share.each(block, step, [&](uint32_t, uint32_t i) { scatter(i, read(i)); });
  }
  confirm<kWorld>(block, turn);
  typename Block::template PerLane<Words> kept;
  for (uint32_t step = 0; step == 0 || step < share.steps(block.lanes) + kAhead; ++step) {
    share.each(block, step + kAhead, [&](uint32_t, uint32_t i) { scatter(i, read(i)); });
    share.each(block, step, [&](uint32_t lane, uint32_t i) {
      if (exists(rank, i)) kept[lane] = sum(i);
    });
    // No output before every signature is checked.
    if (step == 0 && !block.all(turn.ok())) turn.fail();
    share.each(block, step, [&](uint32_t lane, uint32_t i) {
      if (exists(rank, i)) finish(i, kept[lane]);
    });
    if (step < kAhead) continue;
    share.each(block, step - kAhead, [&](uint32_t, uint32_t i) { gather(i); });
  }
  advance(block, turn);
}

}  // namespace pyallreduce
