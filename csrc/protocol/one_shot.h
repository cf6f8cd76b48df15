// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One-shot push: everybody sends everything to everybody and sums for himself. One hop.
#pragma once

#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void one_shot(Block& block, const Call& call) {
  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait();
  launch_dependents();
  Turn turn(call, block.index);
  const uint32_t rank = call.rank;
  const uint32_t all_vectors = (call.elements + kElements<T> - 1) / kElements<T>;
  const uint32_t first = block.index * call.tile;
  const uint32_t tile = first < all_vectors ? min_of(call.tile, all_vectors - first) : 0;
  const auto mailbox = [&](uint32_t sender) {
    return turn.mine().one_shot(turn.block, turn.slot, sender);
  };

  announce<kWorld>(block, turn);
  block.data([&](uint32_t lane) {
    if (!turn.ok()) return;
    for (uint32_t i = lane; i < tile; i += block.lanes) {
      const Words own = canonical(load<T>(call.in, first + i, call.elements));
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) {
        const Slab peer = turn.peer((rank + hop) % kWorld);
        st_relaxed_sys(peer.one_shot(turn.block, turn.slot, rank) + i, own);
      }
    }
  });
  confirm<kWorld>(block, turn);

  typename Block::template PerLane<Words> sum;
  for (uint32_t step = 0; step == 0 || step < tile; step += block.lanes) {
    block.data([&](uint32_t lane) {
      const uint32_t i = step + lane;
      if (i >= tile) return;
      Words by_rank[kWorld];
      const Words own = canonical(load<T>(call.in, first + i, call.elements));
      const auto others = [&](uint32_t r) { return r != rank; };
      const auto box = [&](uint32_t r) { return mailbox(r) + i; };
      const bool arrived = collect(turn, Phase::kShards, by_rank, others, box);
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) by_rank[r] = r == rank ? own : by_rank[r];
      sum[lane] = arrived ? reduce<T>(by_rank) : poison();
    });
    if (step == 0 && !block.all(turn.ok()))
      turn.fail();  // no output before every signature is checked
    block.data([&](uint32_t lane) {
      const uint32_t i = step + lane;
      if (i >= tile) return;
      store<T>(call.out, first + i, call.elements, turn.ok() ? sum[lane] : poison());
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (r != rank) st_relaxed_sys(mailbox(r) + i, armed());
      }
    });
  }
  advance(block, turn);
}

}  // namespace pyallreduce
