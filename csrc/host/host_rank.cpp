// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "host/host_rank.h"

#include <thread>
#include <vector>

#include "host/block.h"
#include "protocol/dispatch.h"
#include "protocol/edges.h"
#include "protocol/one_shot.h"
#include "protocol/two_shot.h"

namespace pyallreduce::host {

// Every rank runs its blocks in the same order and block i waits for the peers' block i alone.
void HostRank::launch(const Call& call, DataType dtype, const Plan& plan, uint64_t /*stream*/) {
  with_type(dtype, [&](auto type) {
    with_world(world(), [&](auto ranks) {
      using T = typename decltype(type)::type;
      for (uint32_t index = 0; index < plan.blocks; ++index) {
        Block block{index, plan.lanes};
        if (plan.algorithm == Algorithm::kOneShot) {
          one_shot<T, ranks.value>(block, call);
        } else {
          two_shot<T, ranks.value>(block, call);
        }
      }
    });
  });
}

void HostRank::launch_refusal(const Call& call, uint64_t /*stream*/) {
  with_world(world(), [&](auto ranks) {
    for (uint32_t index = 0; index < kMaxBlocks; ++index) {
      Block block{index, 32};
      announce_refusal<ranks.value>(block, call);
    }
  });
}

// All edges at once: one that is silent must not hold up the others until their peers give up.
void HostRank::launch_ping_pong(const Call& call, uint64_t /*stream*/) {
  std::vector<std::thread> edges;
  for (uint32_t index = 0; index + 1 < world(); ++index) {
    edges.emplace_back([&call, index] {
      Block block{index, 32};
      pyallreduce::ping_pong(block, call);
    });
  }
  for (std::thread& edge : edges) edge.join();
}

}  // namespace pyallreduce::host
