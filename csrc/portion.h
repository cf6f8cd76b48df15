// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// How much of a message goes into one launch. The same arguments give the same portion on every
// rank.
#pragma once

#include "rank.h"

namespace pyallreduce {

struct Portion {
  uint64_t bytes;
  uint32_t laps;  // through the mailboxes
  uint32_t tile;  // vectors that a block has in each lap (and, in two-shot, from each owner)
};

inline uint64_t divide_up(uint64_t value, uint64_t by) { return (value + by - 1) / by; }

// The first portion of `bytes` bytes. Only two-shot has laps, of equal length or else full ones,
// and only where each of them has kLeastSteps steps: elsewhere a portion is what goes through the
// mailboxes at once.
Portion next_portion(const Layout& layout, const Plan& plan, uint64_t bytes);

}  // namespace pyallreduce
