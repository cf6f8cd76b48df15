// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "portion.h"

#include <algorithm>
#include <stdexcept>

#include "layout.h"
#include "protocol/two_shot.h"

namespace pyallreduce {
namespace {

// A launch counts its elements in 32 bits; one lap is less than that in every slab.
constexpr uint64_t kLaunchBytes = uint64_t{4} << 30;

Portion in_laps(uint64_t bytes, uint64_t laps, uint64_t owners, const Plan& plan) {
  const uint64_t part = divide_up(divide_up(bytes, sizeof(Words)), owners);
  return Portion{bytes, static_cast<uint32_t>(laps),
                 static_cast<uint32_t>(divide_up(part, laps * plan.blocks))};
}

}  // namespace

Portion next_portion(const Layout& layout, const Plan& plan, uint64_t bytes) {
  if (plan.blocks == 0) throw std::invalid_argument("a launch without blocks");
  if (plan.algorithm == Algorithm::kOneShot) {
    return in_laps(std::min(bytes, one_shot_capacity(layout, plan.blocks)), 1, 1, plan);
  }
  const uint64_t capacity = two_shot_capacity(layout, plan.blocks);
  const uint64_t most = std::clamp<uint64_t>(kLaunchBytes / capacity, 1, kMaxLaps);
  const uint64_t laps = std::clamp<uint64_t>(divide_up(bytes, capacity), 1, most);
  const Portion all = in_laps(std::min(bytes, laps * capacity), laps, layout.world, plan);
  const uint32_t least = kLeastSteps * plan.lanes;
  if (laps == 1 || all.tile >= least) return all;
  // In equal laps they would be too short: full ones, and the rest in a launch of its own.
  const uint64_t full = layout.two_shot_tile >= least ? laps - 1 : 1;
  return in_laps(full * capacity, full, layout.world, plan);
}

}  // namespace pyallreduce
