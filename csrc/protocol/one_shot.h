// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One-shot push: everybody sends everything to everybody and sums for himself. One hop.
#pragma once

#include "protocol/mailboxes.h"
#include "protocol/message.h"
#include "protocol/signature.h"

namespace pyallreduce {

// A block's vectors [first, first + count) of `vectors`, `tile` to each block. A step is one vector
// a lane.
struct Share {
  uint32_t first;
  uint32_t count;

  PYALLREDUCE_FN Share(uint32_t tile, uint32_t block, uint32_t vectors)
      : first(block * tile), count(first < vectors ? min_of(tile, vectors - first) : 0) {}

  // Whether any lane has a vector in this step. (Not by a number of steps: a division at the end of
  // a call is part of its time.)
  PYALLREDUCE_FN bool has(uint32_t step, uint32_t lanes) const { return step * lanes < count; }

  // `use(lane, i)` for each vector i of a step that this block has.
  template <typename Block, typename Use>
  PYALLREDUCE_FN void each(const Block& block, uint32_t step, Use use) const {
    block.data([&](uint32_t lane) {
      const uint32_t i = step * block.lanes + lane;
      if (i < count) use(lane, i);
    });
  }
};

template <typename T, int kWorld, typename Block>
PYALLREDUCE_FN void one_shot(Block& block, const Call& call) {
  const Share share(call.tile, block.index, vectors_of<T>(call.elements));
  const Message<T> message(call, share.first);
  Turn turn(call, block.index);
  const Signatures<kWorld, Block> signatures(block, call);
  Mailboxes<kWorld> boxes(call, block.index);

  typename Block::template PerLane<const Words*> source;
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { source[lane] = pinned(message.at(i)); });

  // Happens-before: all writes of this stream's earlier grids, re-arming among them, precede our
  // pushes.
  grid_dependency_wait(turn.bits() | signatures.bits() | boxes.bits() | source.bits() |
                       message.bits() | share.count);
  typename Block::template PerLane<Words> mine, next, result;
  // Before the epoch is read, so that both loads are in flight together.
  share.each(block, 0,
             [&](uint32_t lane, uint32_t i) { mine[lane] = message.load(i, source[lane]); });
  turn.begin();
  boxes = boxes.moved(turn.slot * boxes.shot);

  // What is summed here is what the peers get.
  const auto push = [&](uint32_t i, Words& v) {
    v = canonical(v);
    if (!turn.ok()) return;  // after an abort nothing is published
#pragma unroll
    for (uint32_t hop = 1; hop < kWorld; ++hop) st_relaxed_sys(boxes.to(hop, i), v);
  };
  const auto sum = [&](uint32_t i, const Words& kept) {
    Words others[kWorld - 1];
    const auto box = [&](uint32_t peer) { return boxes.from(peer, i); };
    if (!collect(turn, Phase::kShards, others, box)) return poison();
    return sum_of<T, kWorld>(kept, others, call.rank);
  };

  signatures.send(block, turn);
  share.each(block, 0, [&](uint32_t lane, uint32_t i) { push(i, mine[lane]); });
  // Not before: the next grid's start would hold up our pushes.
  launch_dependents();
  enter(block, turn);
  block.meet();
  advance_by_owner(block, turn);
  // Each later step reads what it pushes when the wire is free for it: from the L2, by then.
  block.signer([&](uint32_t lane) {
#pragma unroll 1
    for (uint32_t i = block.lanes + lane * kLine; i < share.count; i += kSignerLanes * kLine) {
      prefetch(message.at(i));
    }
  });
  signatures.check(block, turn);
  for (uint32_t step = 0; step == 0 || share.has(step, block.lanes); ++step) {
    // One step ahead of the sums: the wire is busy while a lane waits.
    share.each(block, step + 1, [&](uint32_t lane, uint32_t i) {
      next[lane] = message.load(i);
      push(i, next[lane]);
    });
    share.each(block, step, [&](uint32_t lane, uint32_t i) { result[lane] = sum(i, mine[lane]); });
    // No output before every signature is checked. And in step: fast warps wait here for slow ones,
    // as polls would hold up their stores.
    if (!block.all(turn.ok())) turn.join();
    share.each(block, step, [&](uint32_t lane, uint32_t i) {
      message.store(i, turn.ok() ? result[lane] : poison());
    });
    mine = next;
  }
  leave_by_owner(block, turn);
}

}  // namespace pyallreduce
