// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls that differ.
#pragma once

#include "scenarios/tools.h"

namespace pyallreduce::test {

bool poisoned(Message<float>& out) {
  for (uint32_t i = 0; i < out.elements; ++i) {
    if (!std::isnan(out[i])) return false;
  }
  return true;
}

struct Made {
  uint32_t elements = 300;
  Way way = kOneShot;
  uint32_t tag = 0;
  uint32_t blocks = 1;
};

void expect_mismatch(const Made& usual, const Made& other) {
  for (uint32_t world = 2; world <= 3; ++world) {
    Group group(world, 3'000);
    group.run([&](uint32_t r) {
      const Made& made = r == 1 ? other : usual;
      Message<float> x(made.elements), out(made.elements);
      for (uint32_t i = 0; i < made.elements; ++i) x[i] = 1;
      const uint32_t word = all_reduce(group, r, x, out, made.way.in(made.blocks), made.tag);
      const Stop stop = stop_of(word, 1);
      EXPECT(stop == Stop::kMismatch || stop == Stop::kPeer);
      EXPECT(poisoned(out));
      if (stop != Stop::kMismatch) return;
      const Record record = group.ranks[r]->report();
      EXPECT(record.theirs.w[1] != record.ours.w[1] || record.theirs.w[2] != record.ours.w[2] ||
             record.theirs.w[3] != record.ours.w[3]);
      EXPECT(r == 1 ? record.peer < world && record.peer != 1 : record.peer == 1);
    });
  }
}

void mismatch() {
  const Made usual{300, kOneShot};
  expect_mismatch(usual, Made{304, kOneShot});  // another vector
  expect_mismatch(usual, Made{299, kOneShot});  // the same vectors, another tail
  expect_mismatch(usual, Made{300, kTwoShot});
  expect_mismatch(usual, Made{300, kOneShot, 5});
  expect_mismatch(usual, Made{300, kOneShot, 0, 2});
  expect_mismatch(Made{100, kTwoShot}, Made{100, kTwoShot, 5});
}

// Rank 1 makes another call, rank 2 none: what is known of the one is told, not how long the other
// lets wait.
void mismatch_beside_silence() {
  for (const Way& way : kWays) {
    Group group(3, 3'000);
    group.run([&](uint32_t r) {
      if (r == 2) return;
      Message<float> x(300), out(300);
      const Stop stop = stop_of(all_reduce(group, r, x, out, way.in(1), r), 1);
      EXPECT(stop == Stop::kMismatch || stop == Stop::kPeer);
      EXPECT(poisoned(out));
      if (stop == Stop::kMismatch) EXPECT(group.ranks[r]->report().peer == 1 - r);
    });
  }
}

// Rank 1 made one call more: its next one is told apart by its epoch alone.
void epochs_differ() {
  for (const Way& way : kWays) {
    Group group(2, 3'000);
    for (uint32_t b = 0; b < kMaxBlocks; ++b) group.slab(1).epoch(b)->value = 2;
    group.run([&](uint32_t r) {
      Message<float> x(64);
      EXPECT(all_reduce(group, r, x, x, way.in(1)) != 0);
    });
  }
}

void refusal() {
  for (const Way& way : kWays) {
    Group group(3, 3'000);
    group.run([&](uint32_t r) {
      if (r == 1) return group.ranks[r]->refuse(9, 0);
      Message<float> x(100), out(100);
      const Stop stop = stop_of(all_reduce(group, r, x, out, way.in(4)), 1);
      EXPECT(stop == Stop::kRefused || stop == Stop::kPeer);
      EXPECT(poisoned(out));
      if (stop == Stop::kRefused) EXPECT(group.ranks[r]->report().theirs.w[3] == 9);
    });
    group.begin(2);
    EXPECT(every_rank_calls(group, 100, way.in(4)));
  }
}

// A graph of the refuser is replayed before its peers have come to the call that it refused: its
// signature must not take the refusal's place.
void refusal_then_replay() {
  for (const Way& way : kWays) {
    Group group(2, 1'000);
    group.run([&](uint32_t r) {
      Message<float> x(100), out(100);
      if (r == 1) {
        group.ranks[r]->refuse(9, 0);
      } else {
        sleep_ms(200);
      }
      const uint32_t word = all_reduce(group, r, x, out, way.in(1));
      EXPECT(stop_of(word, 1) == (r == 1 ? Stop::kPeer : Stop::kRefused));
      EXPECT(poisoned(out));
    });
  }
}

}  // namespace pyallreduce::test
