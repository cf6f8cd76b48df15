// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "rank.h"

namespace pyallreduce::host {

// Runs the protocol in the calling thread; every all-reduce is complete when it returns.
class HostRank final : public Rank {
 public:
  HostRank(uint32_t rank, const Layout& layout, const std::vector<uint64_t>& slabs, uint64_t record)
      : Rank(rank, layout, slabs, record, record) {}

 private:
  void launch(const Call& call, DataType dtype, const Plan& plan, uint64_t stream) override;
  void launch_refusal(const Call& call, uint64_t stream) override;
  void launch_ping_pong(const Call& call, uint64_t stream) override;
};

}  // namespace pyallreduce::host
