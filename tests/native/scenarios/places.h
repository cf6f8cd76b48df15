// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Where things lie.
#pragma once

#include "scenarios/tools.h"

namespace pyallreduce::test {

// Every vector of every mailbox of one slot has a place of its own, within the slot.
void apart() {
  for (uint32_t world = 2; world <= 3; ++world) {
    Group group(world);
    Slab slab = group.slab(world - 1);
    const auto fill = [&](uint32_t tile, auto mailbox) {
      std::vector<bool> taken(size_t{world - 1} * kMaxBlocks * tile);
      const Words* start = mailbox(0);
      for (uint32_t sender = 0; sender < world - 1; ++sender) {
        for (uint32_t place = 0; place < kMaxBlocks * tile; ++place) {
          const Words* at =
              mailbox(sender) + Slab::apart(tile, place / tile) + Slab::spread(place % tile);
          const auto index = static_cast<size_t>(at - start);
          EXPECT(index < taken.size() && !taken[index]);
          if (index < taken.size()) taken[index] = true;
        }
      }
    };
    fill(group.layout.one_shot_tile, [&](uint32_t sender) { return slab.one_shot(sender); });
    fill(group.layout.two_shot_tile, [&](uint32_t sender) { return slab.two_shot(sender); });
  }
}

}  // namespace pyallreduce::test
