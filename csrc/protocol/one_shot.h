// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One-shot push: everybody sends everything to everybody and sums for himself. One hop.
#pragma once

#include "protocol/share.h"
#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void one_shot(Block& block, const Call& call) {
  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait();
  launch_dependents();
  const uint32_t rank = call.rank;
  const Share share(call.tile, block.index, vectors_of<T>(call.elements));
  const auto own = [&](uint32_t i) { return load<T>(call.in, share.first + i, call.elements); };
  typename Block::template PerLane<Words> kept;
  // Before the epoch is read, so that both loads are in flight together.
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { kept[lane] = own(i); });
  Turn turn(call, block.index);
  const auto mailbox = [&](const Slab& slab, uint32_t sender) {
    return slab.one_shot(turn.slot, turn.block, sender);
  };
  const auto push = [&](uint32_t i, const Words& mine) {
    if (!turn.ok()) return;  // after an abort nothing is published
    const Words v = canonical(mine);
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) {
      st_relaxed_sys(mailbox(turn.peer((rank + hop) % kWorld), rank) + i, v);
    }
  };
  const auto sum = [&](uint32_t i) {
    Words by_rank[kWorld];
    const Words mine = canonical(own(i));
    const auto others = [&](uint32_t r) { return r != rank; };
    const auto box = [&](uint32_t r) { return mailbox(turn.mine(), r) + i; };
    const bool arrived = collect(turn, Phase::kShards, by_rank, others, box);
#pragma unroll
    for (uint32_t r = 0; r < kWorld; ++r) by_rank[r] = r == rank ? mine : by_rank[r];
    return arrived ? reduce<T>(by_rank) : poison();
  };
  const auto finish = [&](uint32_t i, const Words& v) {
    store<T>(call.out, share.first + i, call.elements, turn.ok() ? v : poison());
#pragma unroll
    for (uint32_t r = 0; r < kWorld; ++r) {
      if (r != rank) st_relaxed_sys(mailbox(turn.mine(), r) + i, armed());
    }
  };

  announce<kWorld>(block, turn);
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { push(i, kept[lane]); });
  for (uint32_t step = 1; step < kAhead; ++step) {
    share.each(block, step, [&](uint32_t, uint32_t i) { push(i, own(i)); });
  }
  confirm<kWorld>(block, turn);
  for (uint32_t step = 0; step == 0 || step < share.steps(block.lanes); ++step) {
    share.each(block, step + kAhead, [&](uint32_t, uint32_t i) { push(i, own(i)); });
    share.each(block, step, [&](uint32_t lane, uint32_t i) { kept[lane] = sum(i); });
    // No output before every signature is checked.
    if (step == 0 && !block.all(turn.ok())) turn.fail();
    share.each(block, step, [&](uint32_t lane, uint32_t i) { finish(i, kept[lane]); });
  }
  advance(block, turn);
}

}  // namespace pyallreduce
