// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as threads of one process, for the sanitizers: both algorithms, all world sizes, mixed
// sizes, chunks, each result compared with the rank-order sum. Exits 0 if all are right. With the
// argument `race` two threads also race, as the sanitizer must find.
#include <cstdio>
#include <string>

#include "group.h"

using namespace pyallreduce;
using test::Group;

namespace {

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
    const Plan plan{call / 7 % 2 ? Algorithm::kTwoShot : Algorithm::kOneShot, 1 + call % 5,
                    32 * (1 + call % 2)};
    test::Message<float> x(elements);
    for (uint32_t i = 0; i < elements; ++i) x[i] = value(rank, call, i);
    const uint64_t at = x.address();
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
  const bool race = argc > 1 && std::string(argv[1]) == "race";
  const uint32_t calls = 42;
  uint64_t wrong = 0;
  for (uint32_t world = 2; world <= (race ? 2 : kMaxRanks); ++world) {
    Group group(world);
    std::vector<uint64_t> counts(world);
    std::vector<std::thread> threads;
    for (uint32_t value = 1; race && value <= 2; ++value) {  // plain stores into a mailbox
      threads.emplace_back([&group, value] { group.slabs[0].back().w[0] = value; });
    }
    for (uint32_t r = 0; r < world; ++r) {
      threads.emplace_back([&, r] { counts[r] = run(group, r, calls); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const uint64_t count : counts) wrong += count;
  }
  std::printf("%llu wrong\n", static_cast<unsigned long long>(wrong));
  return wrong == 0 ? 0 : 1;
}
