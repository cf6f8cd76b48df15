// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// A block of the host target: one thread runs its lanes in turn, phase by phase.
#pragma once

#include "protocol/target.h"

namespace pyallreduce::host {

struct Block {
  uint32_t index;
  uint32_t lanes;

  // A value that a lane carries from one phase to the next.
  template <typename V>
  struct PerLane {
    V values[kMaxLanes];
    V& operator[](uint32_t lane) { return values[lane]; }
    const V& operator[](uint32_t lane) const { return values[lane]; }
    uint64_t bits() const { return 0; }  // the host waits for no grid
  };

  template <typename Use>
  void data(Use use) const {
    for (uint32_t lane = 0; lane < lanes; ++lane) use(lane);
  }
  template <typename Use>
  void signer(Use use) const {
    for (uint32_t lane = 0; lane < kSignerLanes; ++lane) use(lane);
  }
  template <typename Use>
  void leader(Use use) const {
    use();
  }
  void meet() const {}
  bool all(bool ok) const { return ok; }
};

}  // namespace pyallreduce::host
