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

// A block's vectors [first, first + count) of `vectors`, `tile` to each block. A step is one vector
// a lane.
struct Share {
  uint32_t first;
  uint32_t count;

  PYALLREDUCE_FN Share(uint32_t tile, uint32_t block, uint32_t vectors)
      : first(block * tile), count(first < vectors ? min_of(tile, vectors - first) : 0) {}

  PYALLREDUCE_FN uint32_t steps(uint32_t lanes) const { return (count + lanes - 1) / lanes; }

  // `use(lane, i)` for each vector i of a step that this block has.
  template <typename Block, typename Use>
  PYALLREDUCE_FN void each(const Block& block, uint32_t step, Use use) const {
    block.data([&](uint32_t lane) {
      const uint32_t i = step * block.lanes + lane;
      if (i < count) use(lane, i);
    });
  }
};

}  // namespace pyallreduce
