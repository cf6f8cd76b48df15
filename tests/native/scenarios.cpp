// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// What the protocol promises, one scenario each, with ranks as threads: `scenarios NAME [SEED]`
// exits 0 if it holds, `scenarios` lists the names. Built with weak_memory.h, whose seed is SEED.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "group.h"
#include "protocol/mailboxes.h"

using namespace pyallreduce;
using test::Group;
using test::Message;

namespace {

constexpr Algorithm kBoth[] = {Algorithm::kOneShot, Algorithm::kTwoShot};
std::atomic<bool> failed{false};

#define EXPECT(condition)                                         \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("line %d: not so: %s\n", __LINE__, #condition); \
      failed = true;                                              \
    }                                                             \
  } while (false)

void sleep_ms(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

template <typename T>
constexpr DataType kType = sizeof(T) == 4 ? DataType::kFloat32 : DataType::kBFloat16;

template <typename T>
uint32_t all_reduce(Group& group, uint32_t rank, Message<T>& in, Message<T>& out, const Plan& plan,
                    uint32_t tag = 0) {
  return group.ranks[rank]->all_reduce(in.address(), out.address(), in.elements, kType<T>, plan,
                                       tag, 0);
}

// A call of small integers; 0, or 1 if anything of it is wrong. In place.
int call(Group& group, uint32_t rank, uint32_t elements, const Plan& plan, uint32_t turn = 0) {
  const auto value = [&](uint32_t r, uint32_t i) {
    return static_cast<float>((i * 7 + r * 131 + turn * 17) % 251);
  };
  Message<float> x(elements);
  for (uint32_t i = 0; i < elements; ++i) x[i] = value(rank, i);
  x[elements] = 77;  // behind the end
  if (all_reduce(group, rank, x, x, plan) != 0) return 1;
  int wrong = x[elements] != 77;
  for (uint32_t i = 0; i < elements; ++i) {
    float sum = 0;
    for (uint32_t r = 0; r < group.world(); ++r) sum += value(r, i);
    wrong |= x[i] != sum;
  }
  return wrong;
}

bool every_rank_calls(Group& group, uint32_t elements, const Plan& plan) {
  std::vector<int> wrong(group.world());
  group.run([&](uint32_t r) { wrong[r] = call(group, r, elements, plan); });
  int any = 0;
  for (const int one : wrong) any |= one;
  return any == 0;
}

// ---- where things lie
// ----------------------------------------------------------------------------

// Every vector of every mailbox of one slot has a place of its own, within the slot.
void apart() {
  for (uint32_t world = 2; world <= 3; ++world) {
    Group group(world);
    Slab slab = group.slab(world - 1);
    const auto fill = [&](uint32_t tile, auto mailbox) {
      std::vector<bool> taken(size_t{world - 1} * kMaxBlocks * tile);
      const Words* start = mailbox(0, 0);
      for (uint32_t sender = 0; sender < world - 1; ++sender) {
        for (uint32_t place = 0; place < kMaxBlocks * tile; ++place) {
          const Words* at = mailbox(place / tile, sender) + Slab::spread(place % tile);
          const auto index = static_cast<size_t>(at - start);
          EXPECT(index < taken.size() && !taken[index]);
          if (index < taken.size()) taken[index] = true;
        }
      }
    };
    fill(group.layout.one_shot_tile, [&](uint32_t b, uint32_t s) { return slab.one_shot(b, s); });
    fill(group.layout.two_shot_tile, [&](uint32_t b, uint32_t s) { return slab.two_shot(b, s); });
  }
}

// ---- calls that go well -------------------------------------------------------------------------

// The least that works: what every mutant must still do.
void smoke() {
  for (const Algorithm algorithm : kBoth) {
    Group group(2);
    EXPECT(every_rank_calls(group, 64, Plan{algorithm, 1, 32}));
  }
}

// Sizes, grids and algorithms in turn: short calls behind long ones, tails, blocks without data.
void sequences() {
  const uint32_t sizes[] = {64, 0, 1, 1000, 5, 4099, 3, 257, 0, 6000, 2};
  for (uint32_t world = 2; world <= 3; ++world) {
    Group group(world);
    std::vector<int> wrong(world);
    group.run([&](uint32_t r) {
      for (uint32_t turn = 0; turn < 66; ++turn) {
        const Plan plan{kBoth[turn % 7 < 4], 1 + turn % 5, 32 * (1 + turn % 2)};
        if (wrong[r] == 0) wrong[r] = call(group, r, sizes[turn % 11], plan, turn);
      }
    });
    for (const int one : wrong) EXPECT(one == 0);
    EXPECT(group.all_armed());
  }
}

// A message of several launches.
void chunks() {
  for (const Algorithm algorithm : kBoth) {
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
    Group group(world, test::usual_deadline_ms(), 5'000, (5 * world - 6) << 20);
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
    for (uint32_t r = 0; r < world; ++r) EXPECT(group.slab(r).state(0)->epoch == 2 * all);
  }
}

// One rank is always late, so that the other runs a call ahead.
void one_ahead() {
  for (const Algorithm algorithm : kBoth) {
    Group group(2);
    std::vector<int> wrong(2);
    group.run([&](uint32_t r) {
      for (uint32_t turn = 0; turn < 12; ++turn) {
        if (r == turn / 6) sleep_ms(2);
        wrong[r] |= call(group, r, turn % 3 == 2 ? 0 : 500, Plan{algorithm, 3, 32}, turn);
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
      for (uint32_t b = 0; b < kMaxBlocks; ++b) group.slab(r).state(b)->epoch = start;
    }
    for (uint32_t turn = 0; turn < 5; ++turn) {
      EXPECT(every_rank_calls(group, 300, Plan{kBoth[turn % 2], 2, 32}));
    }
    EXPECT(group.slab(0).state(0)->epoch == start + 5);
  }
}

// ---- values -------------------------------------------------------------------------------------

uint32_t bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}
float from_bits(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Pairs of words, and what their sum must be.
void values() {
  constexpr uint32_t kNan = 0xfffffffeu;  // any NaN
  const uint32_t cases[][3] = {
      {0x80000000u, 0x80000000u, 0x80000000u},  // -0 + -0
      {0x00000001u, 0x00000000u, 0x00000001u},  // the least subnormal
      {0x00000001u, 0x00000001u, 0x00000002u},
      {0x7f7fffffu, 0x7f7fffffu, 0x7f800000u},  // overflow
      {0x7f800000u, 0xff800000u, kNan},
      {0xffffffffu, 0x3f800000u, kNan},  // the sentinel as payload
      {0x3f800000u, 0xffffffffu, kNan},
      {0xffffffffu, 0xffffffffu, kNan},
      {0x7fc00001u, 0x3f800000u, kNan},
      {0xffbfffffu, 0x3f800000u, kNan},  // made quiet it is the sentinel
      {0x3f800000u, 0xbf800000u, 0x00000000u},
  };
  constexpr uint32_t kCases = sizeof cases / sizeof cases[0];
  for (const Algorithm algorithm : kBoth) {
    Group group(2);
    std::vector<std::vector<uint32_t>> results(2);
    group.run([&](uint32_t r) {
      Message<float> x(kCases * 4);
      for (uint32_t i = 0; i < x.elements; ++i) x[i] = from_bits(cases[i % kCases][r]);
      EXPECT(all_reduce(group, r, x, x, Plan{algorithm, 2, 32}) == 0);
      for (uint32_t i = 0; i < x.elements; ++i) {
        const uint32_t expected = cases[i % kCases][2];
        EXPECT(expected == kNan ? std::isnan(x[i]) : bits(x[i]) == expected);
        results[r].push_back(bits(x[i]));
      }
    });
    EXPECT(results[0] == results[1]);
  }
}

// fp32 from rank 0 to rank 2, rounded once: 2^24 + 1 - 2^24 in that order is 0, in others 1; and in
// bfloat16 256 + 1 + 1 is 258, where rounding twice leaves 256. Each rank's place in the sum
// counts.
void order() {
  for (const Algorithm algorithm : kBoth) {
    for (uint32_t big = 0; big < 3; ++big) {
      Group group(3);
      group.run([&](uint32_t r) {
        const float parts[] = {1.0f, 16777216.0f, -16777216.0f};
        Message<float> x(40);
        for (uint32_t i = 0; i < 40; ++i) x[i] = parts[(r + big) % 3];
        EXPECT(all_reduce(group, r, x, x, Plan{algorithm, 1, 32}) == 0);
        const float expected = (parts[big % 3] + parts[(1 + big) % 3]) + parts[(2 + big) % 3];
        for (uint32_t i = 0; i < 40; ++i) EXPECT(x[i] == expected);
        Message<BFloat16> h(41);
        for (uint32_t i = 0; i < 41; ++i) h[i].bits = r == 0 ? 0x4380 : 0x3f80;  // 256, 1
        EXPECT(all_reduce(group, r, h, h, Plan{algorithm, 1, 32}) == 0);
        for (uint32_t i = 0; i < 41; ++i) EXPECT(h[i].bits == 0x4381);  // 258
      });
    }
  }
}

// ---- calls that differ --------------------------------------------------------------------------

bool poisoned(Message<float>& out) {
  for (uint32_t i = 0; i < out.elements; ++i) {
    if (!std::isnan(out[i])) return false;
  }
  return true;
}

struct Made {
  uint32_t elements = 100;
  Algorithm algorithm = Algorithm::kOneShot;
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
      const uint32_t word =
          all_reduce(group, r, x, out, Plan{made.algorithm, made.blocks, 32}, made.tag);
      const Stop stop = stop_of(word, 1);
      EXPECT(stop == Stop::kMismatch || stop == Stop::kPeer);
      EXPECT(poisoned(out));
      if (stop != Stop::kMismatch) return;
      const Record record = group.ranks[r]->report();
      EXPECT(record.theirs.w[1] != record.ours.w[1] || record.theirs.w[2] != record.ours.w[2] ||
             record.theirs.w[3] != record.ours.w[3]);
      EXPECT(record.peer < world && record.peer != r);
    });
  }
}

void mismatch() {
  expect_mismatch(Made{}, Made{104});  // another vector
  expect_mismatch(Made{}, Made{99});   // the same vectors, another tail
  expect_mismatch(Made{}, Made{100, Algorithm::kTwoShot});
  expect_mismatch(Made{}, Made{100, Algorithm::kOneShot, 5});
  expect_mismatch(Made{100, Algorithm::kTwoShot}, Made{100, Algorithm::kTwoShot, 5});
  expect_mismatch(Made{}, Made{100, Algorithm::kOneShot, 0, 2});
}

// Rank 1 made one call more: its next one is told apart by its epoch alone.
void epochs_differ() {
  Group group(2, 3'000);
  for (uint32_t b = 0; b < kMaxBlocks; ++b) group.slab(1).state(b)->epoch = 2;
  group.run([&](uint32_t r) {
    Message<float> x(64);
    EXPECT(all_reduce(group, r, x, x, Plan{Algorithm::kOneShot, 1, 32}) != 0);
  });
}

void refusal() {
  for (const Algorithm algorithm : kBoth) {
    Group group(3, 3'000);
    group.run([&](uint32_t r) {
      if (r == 1) return group.ranks[r]->refuse(9, 0);
      Message<float> x(100), out(100);
      const Stop stop = stop_of(all_reduce(group, r, x, out, Plan{algorithm, 4, 32}), 1);
      EXPECT(stop == Stop::kRefused || stop == Stop::kPeer);
      EXPECT(poisoned(out));
      if (stop == Stop::kRefused) EXPECT(group.ranks[r]->report().theirs.w[3] == 9);
    });
    group.begin(2);
    EXPECT(every_rank_calls(group, 100, Plan{algorithm, 4, 32}));
  }
}

// A graph of the refuser is replayed before its peers have come to the call that it refused: its
// signature must not take the refusal's place.
void refusal_then_replay() {
  Group group(2, 1'000);
  group.run([&](uint32_t r) {
    Message<float> x(100), out(100);
    if (r == 1) {
      group.ranks[r]->refuse(9, 0);
    } else {
      sleep_ms(200);
    }
    const uint32_t word = all_reduce(group, r, x, out, Plan{Algorithm::kOneShot, 1, 32});
    EXPECT(stop_of(word, 1) == (r == 1 ? Stop::kPeer : Stop::kRefused));
    EXPECT(poisoned(out));
  });
}

// ---- waits that end -----------------------------------------------------------------------------

// Rank 1 stays away. Rank 0 gives up at its deadline; its later calls end at once and send nothing.
void deadline() {
  for (const Algorithm algorithm : kBoth) {
    Group group(2, 300);
    group.run([&](uint32_t r) {
      if (r == 1) return;
      Message<float> x(100), out(100);
      const auto start = std::chrono::steady_clock::now();
      const uint32_t word = all_reduce(group, 0, x, out, Plan{algorithm, 2, 32});
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      EXPECT(word == stop_word(1, Stop::kDeadline));
      EXPECT(took.count() > 0.29);
      EXPECT(poisoned(out));
      const Record record = group.ranks[0]->report();
      EXPECT(record.peer == 1 && record.block == 0 && record.epoch == 0);
      EXPECT(record.phase == static_cast<uint32_t>(Phase::kSignature));
      EXPECT(record.algorithm == static_cast<uint32_t>(algorithm));
      EXPECT(record.waited_ms >= 300);
      EXPECT(record.ours.w[1] == 25);
    });
    EXPECT(group.slab(1).control()->stop == stop_word(1, Stop::kPeer));
    EXPECT(group.slab(0).control()->stop == stop_word(1, Stop::kDeadline));
  }
}

// A generation that was stopped before: calls drain at once, say so, and send nothing.
void drained() {
  for (const Algorithm algorithm : kBoth) {
    Group group(2);
    group.slab(0).control()->stop = stop_word(1, Stop::kPeer);
    group.run([&](uint32_t r) {
      if (r == 1) return;
      Message<float> x(100), out(100);
      EXPECT(all_reduce(group, 0, x, out, Plan{algorithm, 2, 32}) == stop_word(1, Stop::kPeer));
      EXPECT(poisoned(out));
    });
    EXPECT(group.all_armed());
    EXPECT(group.slab(0).state(0)->owner == 0);
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
      Words* shards = group.slab(1).two_shot(0, 2);
      Words* results = shards + uint64_t{kMaxBlocks} * 2 * group.layout.two_shot_tile;
      for (uint32_t i = 0; i < 9; ++i) put(shards + i, Words{{one, one, one, one}});
      for (uint32_t i = 0; i < 7; ++i) put(results + i, Words{{one, one, one, one}});
      for (uint32_t p = 0; p < 2; ++p) {
        put(group.slab(p).signature(0, 2), Words{{0, 25, encode_shape(shape), 0}});
      }
      return;
    }
    Message<float> x(100), out(100);
    const Stop stop = stop_of(all_reduce(group, r, x, out, Plan{Algorithm::kTwoShot, 1, 32}), 1);
    EXPECT(stop == (r == 0 ? Stop::kDeadline : Stop::kPeer));
    const Record record = group.ranks[r]->report();
    EXPECT(record.peer == (r == 0 ? 2 : 0));
    EXPECT(record.phase == static_cast<uint32_t>(r == 0 ? Phase::kShards : Phase::kResults));
  });
}

// Rank 1 signs a call of three laps, sends all that it owes for the first, and is silent then.
void silent_from_the_second_lap() {
  Group group(2, 300);
  const Plan plan{Algorithm::kTwoShot, 1, 32};
  const uint32_t tile = group.layout.two_shot_tile, part = 3 * tile;
  const uint32_t one = bits(1.0f), two = bits(2.0f);
  group.run([&](uint32_t r) {
    Slab there = group.slab(0);
    if (r == 1) {
      const Shape shape{DataType::kFloat32, Algorithm::kTwoShot, 0, 1, 3, 0};
      Words* results = there.two_shot(0, 1) + uint64_t{kMaxBlocks} * tile;
      for (uint32_t i = 0; i < tile; ++i) {
        put(there.two_shot(0, 1) + Slab::spread(i), Words{{one, one, one, one}});
        put(results + Slab::spread(i), Words{{two, two, two, two}});
      }
      return put(there.signature(0, 1), Words{{0, 2 * part, encode_shape(shape), 0}});
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
  EXPECT(group.slab(0).state(0)->epoch == 3);
  group.begin(2);
  EXPECT(every_rank_calls(group, 8 * part, plan));
}

void host_stop() {
  Group group(2);
  group.run([&](uint32_t r) {
    if (r == 1) {
      sleep_ms(50);
      return group.ranks[0]->raise_host_stop(stop_word(1, Stop::kHost));
    }
    Message<float> x(100), out(100);
    EXPECT(stop_of(all_reduce(group, 0, x, out, Plan{Algorithm::kOneShot, 1, 32}), 1) ==
           Stop::kHost);
  });
}

// Rank 1 gives up soon, rank 0 would wait long: it hears of it.
void told_by_a_peer() {
  Group group(3);
  group.records[1].host.deadline_ms = 200;
  group.run([&](uint32_t r) {
    if (r == 2) return;
    Message<float> x(100), out(100);
    const Stop stop = stop_of(all_reduce(group, r, x, out, Plan{Algorithm::kTwoShot, 1, 32}), 1);
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
    wrong[r] = call(group, r, 100, Plan{Algorithm::kOneShot, 1, 32});
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
      EXPECT(call(group, 1, 100, Plan{Algorithm::kOneShot, 1, 32}) == 0);
      return;
    }
    for (uint32_t i = 0; i < 25; ++i) await_vector(group.slab(0).one_shot(0, 1) + i);
    await_vector(group.slab(0).signature(0, 1));
    group.records[0].host.absent = 1u << 1;
    EXPECT(call(group, 0, 100, Plan{Algorithm::kOneShot, 1, 32}) == 0);
    Message<float> x(100), out(100);
    EXPECT(stop_of(all_reduce(group, 0, x, out, Plan{Algorithm::kOneShot, 1, 32}), 1) ==
           Stop::kAbsent);
  });
}

// What comes between a wait's look at the host and its last poll counts: that poll is judged.
void asked_again() {
  Group group(2);
  Call call{};
  call.layout = group.layout;
  for (uint32_t r = 0; r < 2; ++r) call.slabs[r] = reinterpret_cast<char*>(group.address(r));
  call.record = &group.records[0];
  group.run([&](uint32_t r) {
    if (r != 0) return;
    Turn turn(call, 0);
    turn.begin();
    Words* box = group.slab(0).one_shot(0, 1);
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
  Group group(2);
  group.records[0].host.absent = 1u << 0 | 1u << 2;
  std::vector<int> wrong(2);
  group.run([&](uint32_t r) {
    if (r == 1) sleep_ms(100);
    wrong[r] = call(group, r, 100, Plan{Algorithm::kOneShot, 1, 32});
  });
  EXPECT(wrong[0] == 0 && wrong[1] == 0);
}

// The deadline is read while a wait lasts: it may be changed under it.
void patience() {
  Group group(2);
  std::vector<uint32_t> words(2);
  group.run([&](uint32_t r) {
    if (r == 1) {
      sleep_ms(100);
      return set_deadline(group.records[0], 1);
    }
    Message<float> x(100), out(100);
    words[0] = all_reduce(group, 0, x, out, Plan{Algorithm::kOneShot, 1, 32});
  });
  EXPECT(words[0] == stop_word(1, Stop::kDeadline));
}

void notice() {
  Group group(2, test::usual_deadline_ms(), 50);
  group.run([&](uint32_t r) {
    const uint32_t& serial = group.records[0].notice.serial;
    while (r == 1 && __atomic_load_n(&serial, __ATOMIC_ACQUIRE) == 0) sleep_ms(1);
    EXPECT(call(group, r, 100, Plan{Algorithm::kOneShot, 1, 32}) == 0);
  });
  const Notice& notice = group.records[0].notice;
  EXPECT(notice.serial >= 1);
  EXPECT(notice.peer == 1 && notice.waited_ms >= 50 && notice.ours.w[1] == 25);
  EXPECT(group.slab(0).control()->noticer == 0);
  EXPECT(group.records[1].notice.serial == 0);
}

// Two calls of one rank at once.
void overlap() {
  Group group(2, 300);
  group.slab(0).state(0)->owner = 1;  // a call is in block 0
  group.run([&](uint32_t r) {
    Message<float> x(100), out(100);
    const Stop stop = stop_of(all_reduce(group, r, x, out, Plan{Algorithm::kOneShot, 1, 32}), 1);
    if (r == 0) EXPECT(stop == Stop::kOverlap);
  });
}

// The first failure keeps the record; the next generation begins clean.
void generations() {
  Group group(2, 200);
  for (uint32_t generation = 1; generation <= 3; ++generation) {
    group.begin(generation, 200);
    group.run([&](uint32_t r) {
      if (r == 1) return;
      Message<float> x(100), out(100);
      for (int again = 0; again < 2; ++again) {
        EXPECT(all_reduce(group, 0, x, out, Plan{Algorithm::kOneShot, 1, 32}) ==
               stop_word(generation, Stop::kDeadline));
      }
    });
  }
  group.begin(4);
  EXPECT(every_rank_calls(group, 100, Plan{Algorithm::kTwoShot, 2, 32}));
}

// ---- the proof of an edge -----------------------------------------------------------------------

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

const std::map<std::string, void (*)()> kScenarios = {
    {"smoke", smoke},
    {"sequences", sequences},
    {"apart", apart},
    {"chunks", chunks},
    {"laps", laps},
    {"silent_from_the_second_lap", silent_from_the_second_lap},
    {"one_ahead", one_ahead},
    {"wrap", wrap},
    {"values", values},
    {"order", order},
    {"mismatch", mismatch},
    {"epochs_differ", epochs_differ},
    {"refusal", refusal},
    {"refusal_then_replay", refusal_then_replay},
    {"deadline", deadline},
    {"drained", drained},
    {"no_result_of_half_a_sum", no_result_of_half_a_sum},
    {"host_stop", host_stop},
    {"told_by_a_peer", told_by_a_peer},
    {"stale_stop", stale_stop},
    {"absent", absent},
    {"asked_again", asked_again},
    {"another_is_absent", another_is_absent},
    {"patience", patience},
    {"notice", notice},
    {"overlap", overlap},
    {"generations", generations},
    {"ping_pong", ping_pong},
    {"ping_pong_into_a_mirror", ping_pong_into_a_mirror},
    {"ping_pong_of_garbage", ping_pong_of_garbage},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const auto& [name, body] : kScenarios) std::printf("%s\n", name.c_str());
    return 0;
  }
  if (argc > 2) setenv("PYALLREDUCE_TEST_SEED", argv[2], 1);
  kScenarios.at(argv[1])();
  return failed ? 1 : 0;
}
