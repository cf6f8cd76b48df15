// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Waits that end.
#pragma once

#include "protocol/mailboxes.h"
#include "scenarios/differ.h"

namespace pyallreduce::test {

// Rank 1 stays away. Rank 0 gives up at its deadline; its later calls end at once and send nothing.
void deadline() {
  for (const Way& way : kWays) {
    Group group(2, 300);
    group.run([&](uint32_t r) {
      if (r == 1) return;
      Message<float> x(400), out(400);
      const auto start = std::chrono::steady_clock::now();
      const uint32_t word = all_reduce(group, 0, x, out, way.in(2));
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      EXPECT(word == stop_word(1, Stop::kDeadline));
      EXPECT(took.count() > 0.29);
      EXPECT(poisoned(out));
      const Record record = group.ranks[0]->report();
      EXPECT(record.peer == 1 && record.block == 0 && record.epoch == 0);
      EXPECT(record.phase == static_cast<uint32_t>(Phase::kSignature));
      EXPECT(record.algorithm == static_cast<uint32_t>(way.algorithm));
      EXPECT(record.waited_ms >= 300);
      EXPECT(record.ours.w[1] == 100);
    });
    EXPECT(group.slab(1).control()->stop == stop_word(1, Stop::kPeer));
    EXPECT(group.slab(0).control()->stop == stop_word(1, Stop::kDeadline));
  }
}

// A generation that was stopped before: calls drain at once, say so, and send nothing.
void drained() {
  for (const Way& way : kWays) {
    Group group(2);
    group.slab(0).control()->stop = stop_word(1, Stop::kPeer);
    group.run([&](uint32_t r) {
      if (r == 1) return;
      Message<float> x(100), out(100);
      EXPECT(all_reduce(group, 0, x, out, way.in(2)) == stop_word(1, Stop::kPeer));
      EXPECT(poisoned(out));
    });
    EXPECT(group.all_armed());
    EXPECT(group.slab(0).owner_word(0)->value == 0);
  }
}

void put(Words* at, const Words& value) {
  for (uint32_t w = 0; w < 4; ++w) __atomic_store_n(&at->w[w], value.w[w], __ATOMIC_RELEASE);
}

// Rank 2 signs, and sends rank 1 all that it owes it, and rank 0 nothing. Rank 0 has not all shards
// of its part: it must not send a result of it, which rank 1 would take.
void no_result_of_half_a_sum() {
  Group group(3);
  group.records[0].host.deadline_ms = 300;
  group.run([&](uint32_t r) {
    if (r == 2) {
      const Shape shape{DataType::kFloat32, Algorithm::kTwoShot, 0, 1, 1, 0};
      const uint32_t one = bits(1.0f);
      Words* shards = group.slab(1).two_shot(1);
      Words* results = shards + uint64_t{kMaxBlocks} * 2 * group.layout.two_shot_tile;
      for (uint32_t i = 0; i < 9; ++i) put(shards + i, Words{{one, one, one, one}});
      for (uint32_t i = 0; i < 7; ++i) put(results + i, Words{{one, one, one, one}});
      for (uint32_t p = 0; p < 2; ++p) {
        put(group.slab(p).signatures(2 - p), Words{{0, 25, encode_shape(shape), 0}});
      }
      return;
    }
    Message<float> x(100), out(100);
    const Stop stop = stop_of(all_reduce(group, r, x, out, kTwoShot.in(1)), 1);
    EXPECT(stop == (r == 0 ? Stop::kDeadline : Stop::kPeer));
    const Record record = group.ranks[r]->report();
    EXPECT(record.peer == (r == 0 ? 2 : 0));
    EXPECT(record.phase == static_cast<uint32_t>(r == 0 ? Phase::kShards : Phase::kResults));
  });
}

// Rank 1 signs a call of three laps, sends all that it owes for the first, and is silent then.
void silent_from_the_second_lap() {
  Group group(2, 300);
  const Plan plan = kTwoShot.in(1);
  const uint32_t tile = group.layout.two_shot_tile, part = 3 * tile;
  const uint32_t one = bits(1.0f), two = bits(2.0f);
  group.run([&](uint32_t r) {
    Slab there = group.slab(0);
    if (r == 1) {
      const Shape shape{DataType::kFloat32, Algorithm::kTwoShot, 0, 1, 3, 0};
      Words* results = there.two_shot(0) + uint64_t{kMaxBlocks} * tile;
      for (uint32_t i = 0; i < tile; ++i) {
        put(there.two_shot(0) + Slab::spread(i), Words{{one, one, one, one}});
        put(results + Slab::spread(i), Words{{two, two, two, two}});
      }
      return put(there.signatures(1), Words{{0, 2 * part, encode_shape(shape), 0}});
    }
    Message<float> x(8 * part), out(8 * part);
    for (uint32_t i = 0; i < x.elements; ++i) x[i] = 1;
    EXPECT(stop_of(all_reduce(group, r, x, out, plan), 1) == Stop::kDeadline);
    for (uint32_t owner = 0; owner < 2; ++owner) {
      for (uint32_t i = 0; i < 4 * part; ++i) {
        const float seen = out[owner * 4 * part + i];
        // Its last results would have been gathered behind the sum that fails.
        const uint32_t right = 4 * (owner == 0 ? tile : tile - 32);
        EXPECT(i < right ? seen == 2 : std::isnan(seen));
      }
    }
    EXPECT(group.ranks[0]->report().phase == static_cast<uint32_t>(Phase::kShards));
  });
  EXPECT(group.slab(0).epoch(0)->value == 3);
  group.begin(2);
  EXPECT(every_rank_calls(group, 8 * part, plan));
}

void host_stop() {
  for (const Way& way : kWays) {
    Group group(2);
    group.run([&](uint32_t r) {
      if (r == 1) {
        sleep_ms(50);
        return group.ranks[0]->raise_host_stop(stop_word(1, Stop::kHost));
      }
      Message<float> x(100), out(100);
      EXPECT(stop_of(all_reduce(group, 0, x, out, way.in(1)), 1) == Stop::kHost);
    });
  }
}

// Rank 1 gives up soon, rank 0 would wait long: it hears of it.
void told_by_a_peer() {
  Group group(3);
  group.records[1].host.deadline_ms = 200;
  group.run([&](uint32_t r) {
    if (r == 2) return;
    Message<float> x(100), out(100);
    const Stop stop = stop_of(all_reduce(group, r, x, out, kTwoShot.in(1)), 1);
    EXPECT(stop == (r == 1 ? Stop::kDeadline : Stop::kPeer));
  });
}

// Stop words of an older generation, in slab and record, do nothing.
void stale_stop() {
  Group group(2);
  group.begin(7);
  for (uint32_t r = 0; r < 2; ++r) {
    group.slab(r).control()->stop = stop_word(6, Stop::kPeer);
    group.records[r].host.stop = stop_word(6, Stop::kHost);
  }
  std::vector<int> wrong(2);
  group.run([&](uint32_t r) {
    if (r == 1) sleep_ms(30);
    wrong[r] = call(group, r, 100, kOneShot.in(1));
  });
  EXPECT(wrong[0] == 0 && wrong[1] == 0);
}

void await_vector(const Words* at) {
  while (pending(ld_relaxed_sys(at))) sleep_ms(1);
}

// What an absent rank sent is taken; for what it did not send nobody waits.
void absent() {
  Group group(2);
  group.run([&](uint32_t r) {
    if (r == 1) {
      EXPECT(call(group, 1, 100, kOneShot.in(1)) == 0);
      return;
    }
    for (uint32_t i = 0; i < 25; ++i) await_vector(group.slab(0).one_shot(0) + i);
    await_vector(group.slab(0).signatures(1));
    group.records[0].host.absent = 1u << 1;
    EXPECT(call(group, 0, 100, kOneShot.in(1)) == 0);
    Message<float> x(100), out(100);
    EXPECT(stop_of(all_reduce(group, 0, x, out, kOneShot.in(1)), 1) == Stop::kAbsent);
  });
}

// What comes between a wait's look at the host and its last poll counts: that poll is judged.
void asked_again() {
  Group group(2);
  Call call{};
  call.layout = group.layout;
  call.control = group.slab(0).control();
  call.epochs = group.slab(0).epoch(0);
  call.record = &group.records[0];
  group.run([&](uint32_t r) {
    if (r != 0) return;
    Turn turn(call, 0);
    turn.begin();
    Words* box = group.slab(0).one_shot(0);
    uint32_t reads = 0;
    const auto mailbox = [&](uint32_t) {
      // The first, and one a poll up to the second look; that look's own comes next.
      if (++reads == 2 * kPollsPerLook + 1) group.records[0].host.absent = 1u << 1;
      if (reads == 2 * kPollsPerLook + 2) *box = Words{};
      return box;
    };
    Words vectors[1];
    EXPECT(collect(turn, Phase::kShards, vectors, mailbox));
    EXPECT(!pending(vectors[0]));
  });
}

// Another rank's absence is no reason to give up on this one.
void another_is_absent() {
  for (const Way& way : kWays) {
    Group group(2);
    group.records[0].host.absent = 1u << 0 | 1u << 2;
    std::vector<int> wrong(2);
    group.run([&](uint32_t r) {
      if (r == 1) sleep_ms(100);
      wrong[r] = call(group, r, 100, way.in(1));
    });
    EXPECT(wrong[0] == 0 && wrong[1] == 0);
  }
}

// The deadline is read while a wait lasts: it may be changed under it.
void patience() {
  for (const Way& way : kWays) {
    Group group(2);
    std::vector<uint32_t> words(2);
    group.run([&](uint32_t r) {
      if (r == 1) {
        sleep_ms(100);
        return set_deadline(group.records[0], 1);
      }
      Message<float> x(100), out(100);
      words[0] = all_reduce(group, 0, x, out, way.in(1));
    });
    EXPECT(words[0] == stop_word(1, Stop::kDeadline));
  }
}

void notice() {
  for (const Way& way : kWays) {
    Group group(2, usual_deadline_ms(), 50);
    group.run([&](uint32_t r) {
      const uint32_t& serial = group.records[0].notice.serial;
      while (r == 1 && __atomic_load_n(&serial, __ATOMIC_ACQUIRE) == 0) sleep_ms(1);
      EXPECT(call(group, r, 100, way.in(1)) == 0);
    });
    const Notice& notice = group.records[0].notice;
    EXPECT(notice.serial >= 1);
    EXPECT(notice.peer == 1 && notice.waited_ms >= 50 && notice.ours.w[1] == 25);
    EXPECT(group.slab(0).control()->noticer == 0);
    EXPECT(group.records[1].notice.serial == 0);
  }
}

// Two calls of one rank at once: one is in block 0, and has advanced its epoch or not yet.
void overlap() {
  for (const Way& way : kWays) {
    for (const uint32_t epoch : {0u, 1u}) {
      Group group(2, 300);
      group.slab(0).owner_word(0)->value = 1;
      group.slab(0).epoch(0)->value = epoch;
      group.run([&](uint32_t r) {
        Message<float> x(100), out(100);
        const Stop stop = stop_of(all_reduce(group, r, x, out, way.in(1)), 1);
        if (r == 0) EXPECT(stop == Stop::kOverlap);
      });
    }
  }
}

// The first failure keeps the record; the next generation begins clean.
void generations() {
  for (const Way& way : kWays) {
    Group group(2, 200);
    for (uint32_t generation = 1; generation <= 3; ++generation) {
      group.begin(generation, 200);
      group.run([&](uint32_t r) {
        if (r == 1) return;
        Message<float> x(100), out(100);
        for (int again = 0; again < 2; ++again) {
          EXPECT(all_reduce(group, 0, x, out, way.in(1)) == stop_word(generation, Stop::kDeadline));
        }
      });
    }
    group.begin(4);
    EXPECT(every_rank_calls(group, 100, kTwoShot.in(2)));
  }
}

}  // namespace pyallreduce::test
