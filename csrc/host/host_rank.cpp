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
namespace {

// Ends with all of them ended, also where not all could be started.
class Threads {
 public:
  explicit Threads(uint32_t most) { threads_.reserve(most); }
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  template <typename F>
  void start(F work) {
    threads_.emplace_back(work);
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace

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
  Threads edges(world());
  for (uint32_t index = 0; index + 1 < world(); ++index) {
    edges.start([&call, index] {
      Block block{index, 32};
      pyallreduce::ping_pong(block, call);
    });
  }
}

}  // namespace pyallreduce::host
