// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as threads of one process, for the sanitizers: both algorithms, all world sizes, mixed
// sizes, chunks, each result compared with the rank-order sum. Exits 0 if all are right.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "host/host_rank.h"
#include "layout.h"

using namespace pyallreduce;

namespace {

struct Group {
  Layout layout;
  std::vector<std::vector<Words>> slabs;
  std::vector<Record> records;
  std::vector<std::unique_ptr<host::HostRank>> ranks;

  explicit Group(uint32_t world) : layout(make_layout(world, 2u << 20)), records(world) {
    std::vector<uint64_t> addresses;
    for (uint32_t r = 0; r < world; ++r) {
      slabs.emplace_back(layout.bytes / sizeof(Words));
      char* base = reinterpret_cast<char*>(slabs.back().data());
      for (const Region& region : regions(layout)) {
        std::memset(base + region.offset, region.armed ? 0xff : 0, region.bytes);
      }
      const Control control{0, 1, {}, 0, 0, {}};
      std::memcpy(base + layout.control, &control, sizeof control);
      addresses.push_back(reinterpret_cast<uint64_t>(base));
    }
    for (uint32_t r = 0; r < world; ++r) {
      arm(records[r], 1, 20'000, 5'000);
      const auto record = reinterpret_cast<uint64_t>(&records[r]);
      ranks.push_back(std::make_unique<host::HostRank>(r, layout, addresses, record));
    }
  }
};

float value(uint32_t rank, uint32_t call, uint32_t i) {
  return static_cast<float>((i * 7 + rank * 131 + call * 17) % 251);
}

// One rank's calls; returns how many elements were wrong.
uint64_t run(Group& group, uint32_t rank, uint32_t calls) {
  const uint32_t world = group.layout.world;
  uint64_t wrong = 0;
  for (uint32_t call = 0; call < calls; ++call) {
    const uint32_t sizes[] = {0, 1, 5, 64, 1000, 4099, 100003};
    const uint32_t elements = sizes[call % 7];
    const Plan plan{call / 7 % 2 ? Algorithm::kTwoShot : Algorithm::kOneShot, 1 + call % 5, 64};
    std::vector<Words> data(elements / 4 + 1);
    float* x = reinterpret_cast<float*>(data.data());
    for (uint32_t i = 0; i < elements; ++i) x[i] = value(rank, call, i);
    const auto at = reinterpret_cast<uint64_t>(x);
    if (group.ranks[rank]->all_reduce(at, at, elements, DataType::kFloat32, plan, 0, 0)) ++wrong;
    if (group.ranks[rank]->state()) return wrong + 1;
    for (uint32_t i = 0; i < elements; ++i) {
      float sum = 0;
      for (uint32_t r = 0; r < world; ++r) sum += value(r, call, i);
      wrong += x[i] != sum;
    }
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t calls = argc > 1 ? static_cast<uint32_t>(std::stoul(argv[1])) : 42;
  uint64_t wrong = 0;
  for (uint32_t world = 2; world <= kMaxRanks; ++world) {
    Group group(world);
    std::vector<uint64_t> counts(world);
    std::vector<std::thread> threads;
#ifdef PLANT_A_RACE  // the negative control: a plain store into a mailbox that its owner polls
    threads.emplace_back([&] { group.slabs[0].back().w[0] = 1; });
    threads.emplace_back([&] { group.slabs[0].back().w[0] = 2; });
#endif
    for (uint32_t r = 0; r < world; ++r) {
      threads.emplace_back([&, r] { counts[r] = run(group, r, calls); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const uint64_t count : counts) wrong += count;
  }
  std::printf("%llu wrong\n", static_cast<unsigned long long>(wrong));
  return wrong == 0 ? 0 : 1;
}
