// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One-shot push: everybody sends everything to everybody and sums for himself. One hop.
#pragma once

#include "protocol/mailboxes.h"
#include "protocol/share.h"
#include "protocol/signature.h"

namespace pyallreduce {

template <typename T, int kWorld, uint32_t kFlight, typename Block>
PYALLREDUCE_FN void one_shot(Block& block, const Call& call) {
  // Steps by which pushes run ahead of the sums.
  constexpr uint32_t kAhead = 1;
  using Lot = Batch<kFlight>;
  struct Vectors {
    Words of[kFlight];
  };
  const uint32_t rank = call.rank;
  const Share<kFlight> share(call.tile, block.index, vectors_of<T>(call.elements));
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  const auto place = [&](const Slab& slab, uint32_t sender) {
    return slab.one_shot(turn.block, sender);
  };
  Mailboxes<kWorld> boxes(call, call.layout.one_shot_tile, place);
  const auto read = [&](const Lot& lot) {
    Vectors own;
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      own.of[f] = load<T>(call.in, share.first + lot.at(f), call.elements);
    }
    return own;
  };

  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait(turn.bits() | signatures.bits() | boxes.bits() | share.count);
  launch_dependents();
  typename Block::template PerLane<Vectors> kept;
  // Before the epoch is read, so that all these loads are in flight together.
  share.each(block, 0, [&](uint32_t lane, const Lot& lot) { kept[lane] = read(lot); });
  turn.begin();
  boxes = boxes.further(turn.slot * boxes.shot);

  const auto push = [&](const Lot& lot, const Vectors& own) {
    if (!turn.ok()) return;  // after an abort nothing is published
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      if (!lot.has(f)) break;
      const Words v = canonical(own.of[f]);
#pragma unroll
      for (uint32_t hop = 1; hop < kWorld; ++hop) st_relaxed_sys(boxes.to(hop) + lot.at(f), v);
    }
  };
  const auto sum = [&](const Lot& lot) {
    Words by_rank[kFlight][kWorld];
    Vectors result = read(lot);
    const auto others = [&](uint32_t f, uint32_t r) { return r != rank && lot.has(f); };
    const auto box = [&](uint32_t f, uint32_t r) { return boxes.from(r) + lot.at(f); };
    const bool arrived = collect(turn, Phase::kShards, by_rank, others, box);
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        by_rank[f][r] = r == rank ? canonical(result.of[f]) : by_rank[f][r];
      }
      result.of[f] = arrived ? reduce<T>(by_rank[f]) : poison();
    }
    return result;
  };
  const auto finish = [&](const Lot& lot, const Vectors& sums) {
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      if (!lot.has(f)) break;
      const Words v = turn.ok() ? sums.of[f] : poison();
      store<T>(call.out, share.first + lot.at(f), call.elements, v);
#pragma unroll
      for (uint32_t r = 0; r < kWorld; ++r) {
        if (r != rank) st_relaxed_sys(boxes.from(r) + lot.at(f), armed());
      }
    }
  };

  signatures.send(block, turn);
  share.each(block, 0, [&](uint32_t lane, const Lot& lot) { push(lot, kept[lane]); });
  for (uint32_t step = 1; step < kAhead; ++step) {
    share.each(block, step, [&](uint32_t, const Lot& lot) { push(lot, read(lot)); });
  }
  enter(block, turn);
  signatures.check(block, turn);
  for (uint32_t step = 0; step == 0 || step < share.steps(block.lanes); ++step) {
    share.each(block, step + kAhead, [&](uint32_t, const Lot& lot) { push(lot, read(lot)); });
    share.each(block, step, [&](uint32_t lane, const Lot& lot) { kept[lane] = sum(lot); });
    // No output before every signature is checked.
    if (step == 0 && !block.all(turn.ok())) turn.join();
    share.each(block, step, [&](uint32_t lane, const Lot& lot) { finish(lot, kept[lane]); });
  }
  leave(block, turn);
}

}  // namespace pyallreduce
