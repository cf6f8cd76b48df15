// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The proof of an edge.
#pragma once

#include "scenarios/tools.h"

namespace pyallreduce::test {

void ping_pong() {
  Group group(3, 3'000);
  group.run([&](uint32_t r) { group.ranks[r]->ping_pong(9, 1234, 0); });
  for (uint32_t r = 0; r < 3; ++r) {
    for (uint32_t peer = 0; peer < 3; ++peer) {
      if (peer == r) continue;
      const Edge edge = group.ranks[r]->edge(peer);
      EXPECT(edge.state == static_cast<uint32_t>(EdgeState::kSound) && edge.rounds == 9);
    }
  }
}

// Rank 1's writes to rank 0 go elsewhere: rank 1 hears one round more, and reads its write back.
void ping_pong_into_a_mirror() {
  Group group(2, 1'000);
  std::vector<Words> mirror(group.slabs[0]);
  host::HostRank lost(1, group.layout,
                      {reinterpret_cast<uint64_t>(mirror.data()), group.address(1)},
                      reinterpret_cast<uint64_t>(&group.records[1]));
  group.run([&](uint32_t r) {
    if (r == 0) {
      group.ranks[0]->ping_pong(8, 5, 0);
    } else {
      lost.ping_pong(8, 5, 0);
    }
  });
  const Edge near = group.ranks[0]->edge(1), far = lost.edge(0);
  EXPECT(near.state == static_cast<uint32_t>(EdgeState::kSilent) && near.rounds == 0);
  EXPECT(far.state == static_cast<uint32_t>(EdgeState::kSilent) && far.rounds == 1);
  EXPECT(far.read_back == 1);
}

// One word of one round is wrong.
void ping_pong_of_garbage() {
  Group group(2, 1'000);
  group.slab(0).probe(0, 1)->w[3] = 12345;
  group.run([&](uint32_t r) {
    if (r == 0) group.ranks[0]->ping_pong(8, 5, 0);
  });
  EXPECT(group.ranks[0]->edge(1).state == static_cast<uint32_t>(EdgeState::kCorrupt));
}

}  // namespace pyallreduce::test
