// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// What a block has of a message, and the order in which its lanes go through it.
#pragma once

#include "protocol/pack.h"

namespace pyallreduce {

template <typename T>
PYALLREDUCE_FN uint32_t vectors_of(uint32_t elements) {
  return (elements + kElements<T> - 1) / kElements<T>;
}

// What a lane has in flight together: up to kFlight vectors, `stride` apart, of those below
// `count`.
template <uint32_t kFlight>
struct Batch {
  uint32_t first;
  uint32_t stride;
  uint32_t count;

  PYALLREDUCE_FN uint32_t at(uint32_t f) const { return first + f * stride; }
  PYALLREDUCE_FN bool has(uint32_t f) const { return at(f) < count; }
};

// A block's vectors [first, first + count) of `vectors`, `tile` to each block. A step is one batch
// a lane.
template <uint32_t kFlight>
struct Share {
  uint32_t first;
  uint32_t count;

  PYALLREDUCE_FN Share(uint32_t tile, uint32_t block, uint32_t vectors)
      : first(block * tile), count(first < vectors ? min_of(tile, vectors - first) : 0) {}

  PYALLREDUCE_FN uint32_t steps(uint32_t lanes) const {
    return (count + lanes * kFlight - 1) / (lanes * kFlight);
  }

  // `use(lane, batch)` for each lane that has something to do in a step.
  template <typename Block, typename Use>
  PYALLREDUCE_FN void each(const Block& block, uint32_t step, Use use) const {
    block.data([&](uint32_t lane) {
      const Batch<kFlight> batch{step * kFlight * block.lanes + lane, block.lanes, count};
      if (batch.has(0)) use(lane, batch);
    });
  }
};

}  // namespace pyallreduce
