// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls that go well.
#pragma once

#include <algorithm>

#include "scenarios/tools.h"

namespace pyallreduce::test {

// The least that works: what every mutant must still do.
void smoke() {
  for (const Way& way : kWays) {
    Group group(2);
    EXPECT(every_rank_calls(group, 64, way.in(1)));
  }
}

// Sizes, grids and algorithms in turn: short calls behind long ones, tails, blocks without data. In
// a small slab a call is several launches, in a large one a block has several steps.
void sequences() {
  const uint32_t sizes[] = {64, 0, 1, 1000, 5, 4099, 3, 257, 0, 6000, 2};
  for (uint32_t world = 2; world <= 3; ++world) {
    for (const uint32_t mebibytes : {2u, 5 * world - 6}) {
      Group group(world, usual_deadline_ms(), 5'000, uint64_t{mebibytes} << 20);
      EXPECT((group.layout.one_shot_tile > 2 * kOneShot.lanes) == (mebibytes > 2));
      std::vector<int> wrong(world);
      group.run([&](uint32_t r) {
        for (uint32_t turn = 0; turn < 66; ++turn) {
          const Algorithm algorithm = turn % 7 < 4 ? Algorithm::kTwoShot : Algorithm::kOneShot;
          const Plan plan{algorithm, 1 + turn % 5, 32 * (1 + turn % 2)};
          if (wrong[r] == 0) wrong[r] = call(group, r, sizes[turn % 11], plan, turn);
        }
      });
      for (const int one : wrong) EXPECT(one == 0);
      EXPECT(group.all_armed());
    }
  }
}

// A message of several launches.
void chunks() {
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    Group group(2);
    const uint64_t capacity = algorithm == Algorithm::kOneShot ? one_shot_capacity(group.layout, 2)
                                                               : two_shot_capacity(group.layout, 2);
    EXPECT(every_rank_calls(group, static_cast<uint32_t>(capacity / 4) * 2 + 9,
                            Plan{algorithm, 2, 64}));
    EXPECT(group.all_armed());
  }
}

// Messages of several laps, now more and now fewer than the call before had, and of more than one
// launch has; short calls in between. Each rank is late at times.
void laps() {
  for (uint32_t world = 2; world <= 3; ++world) {
    Group group(world, usual_deadline_ms(), 5'000, (5 * world - 6) << 20);
    const Plan plan{Algorithm::kTwoShot, 2, 32}, other{Algorithm::kOneShot, 2, 32};
    const auto lap = static_cast<uint32_t>(two_shot_capacity(group.layout, 2) / sizeof(float));
    const uint32_t sizes[] = {lap * 2 - lap / 5, lap * 5 - 3, 7, lap * 3 - 200, 0, lap * 65, lap};
    uint32_t all = 0;
    for (const uint32_t n : sizes) {
      const Portion first = next_portion(group.layout, plan, uint64_t{n} * sizeof(float));
      all += first.laps + (n == lap * 65 ? 2 : 0);
      EXPECT(first.laps == std::clamp((n + lap - 1) / lap, 1u, kMaxLaps));
    }
    std::vector<int> wrong(world);
    group.run([&](uint32_t r) {
      for (uint32_t turn = 0; turn < 14; ++turn) {
        if (turn % world == r) sleep_ms(1);
        const uint32_t elements = sizes[turn % 7];
        wrong[r] |= call(group, r, elements, elements == 7 ? other : plan, turn);
      }
    });
    for (const int one : wrong) EXPECT(one == 0);
    EXPECT(group.all_armed());
    for (uint32_t r = 0; r < world; ++r) EXPECT(group.slab(r).epoch(0)->value == 2 * all);
  }
}

// One rank is always late, so that the other runs a call ahead.
void one_ahead() {
  for (const Way& way : kWays) {
    Group group(2);
    std::vector<int> wrong(2);
    group.run([&](uint32_t r) {
      for (uint32_t turn = 0; turn < 12; ++turn) {
        if (r == turn / 6) sleep_ms(2);
        wrong[r] |= call(group, r, turn % 3 == 2 ? 0 : 300, way.in(3), turn);
      }
    });
    EXPECT(wrong[0] == 0 && wrong[1] == 0);
  }
}

// Epochs pass 2^31, where a signature's wrap, and 2^32.
void wrap() {
  for (const uint32_t start : {0x7ffffffeu, 0xfffffffeu}) {
    Group group(2);
    for (uint32_t r = 0; r < 2; ++r) {
      for (uint32_t b = 0; b < kMaxBlocks; ++b) group.slab(r).epoch(b)->value = start;
    }
    for (uint32_t turn = 0; turn < 6; ++turn) {
      EXPECT(every_rank_calls(group, 200, kWays[turn % 2].in(2)));
    }
    EXPECT(group.slab(0).epoch(0)->value == start + 6);
  }
}

}  // namespace pyallreduce::test
