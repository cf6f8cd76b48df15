// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-shot push: rank r owns the r-th part of the message. Everybody sends each part to its owner
// (reduce-scatter), the owner sums it and sends the result to everybody (all-gather). Two hops,
// 2(N-1)/N of the message on the wire.
#pragma once

#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void two_shot(Block& block, const Call& call) {
  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait();
  launch_dependents();
  Turn turn(call, block.index);
  const uint32_t rank = call.rank;
  const uint32_t all_vectors = (call.elements + kElements<T> - 1) / kElements<T>;
  const uint32_t part = (all_vectors + kWorld - 1) / kWorld;
  const uint32_t first = block.index * call.tile;
  const uint32_t tile = first < part ? min_of(call.tile, part - first) : 0;
  // This block's i-th vector of the part that `owner` owns; the last parts may be short.
  const auto vector = [&](uint32_t owner, uint32_t i) { return owner * part + first + i; };
  const auto exists = [&](uint32_t owner, uint32_t i) { return vector(owner, i) < all_vectors; };
  const auto shards = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.block, turn.slot, 0, sender);
  };
  const auto results = [&](const Slab& slab, uint32_t sender) {
    return slab.two_shot(turn.block, turn.slot, 1, sender);
  };

  announce<kWorld>(block, turn);
  block.data([&](uint32_t lane) {
    if (!turn.ok()) return;
    for (uint32_t i = lane; i < tile; i += block.lanes) {
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) {
        const uint32_t owner = (rank + hop) % kWorld;
        if (!exists(owner, i)) continue;
        const Words shard = canonical(load<T>(call.in, vector(owner, i), call.elements));
        st_relaxed_sys(shards(turn.peer(owner), rank) + i, shard);
      }
    }
  });
  confirm<kWorld>(block, turn);

  typename Block::template PerLane<Words> sum;
  for (uint32_t step = 0; step == 0 || step < tile; step += block.lanes) {
    block.data([&](uint32_t lane) {
      const uint32_t i = step + lane;
      if (i >= tile || !exists(rank, i)) return;
      Words by_rank[kWorld];
      const Words own = canonical(load<T>(call.in, vector(rank, i), call.elements));
      const auto others = [&](uint32_t r) { return r != rank; };
      const auto box = [&](uint32_t r) { return shards(turn.mine(), r) + i; };
      const bool arrived = collect(turn, Phase::kShards, by_rank, others, box);
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) by_rank[r] = r == rank ? own : by_rank[r];
      sum[lane] = arrived ? reduce<T>(by_rank) : poison();
      if (!arrived) return;  // after an abort nothing is published
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) {
        const Slab peer = turn.peer((rank + hop) % kWorld);
        st_relaxed_sys(results(peer, rank) + i, sum[lane]);
      }
    });
    if (step == 0 && !block.all(turn.ok()))
      turn.fail();  // no output before every signature is checked
    block.data([&](uint32_t lane) {
      const uint32_t i = step + lane;
      if (i >= tile || !exists(rank, i)) return;
      // The owner stores the value that it sent: all ranks hold the same bits.
      store<T>(call.out, vector(rank, i), call.elements, turn.ok() ? sum[lane] : poison());
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (r != rank) st_relaxed_sys(shards(turn.mine(), r) + i, armed());
      }
    });
  }

  block.data([&](uint32_t lane) {
    for (uint32_t i = lane; i < tile; i += block.lanes) {
      Words by_rank[kWorld];
      const auto owners = [&](uint32_t r) { return r != rank && exists(r, i); };
      const auto box = [&](uint32_t r) { return results(turn.mine(), r) + i; };
      const bool arrived = collect(turn, Phase::kResults, by_rank, owners, box);
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (!owners(r)) continue;
        store<T>(call.out, vector(r, i), call.elements, arrived ? by_rank[r] : poison());
        st_relaxed_sys(box(r), armed());
      }
    }
  });
  advance(block, turn);
}

}  // namespace pyallreduce
