// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// What every scenario uses.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "group.h"

namespace pyallreduce::test {

// How a call is carried.
struct Way {
  Algorithm algorithm;
  uint32_t lanes;

  Plan in(uint32_t blocks) const { return Plan{algorithm, blocks, lanes}; }
};

constexpr Way kOneShot{Algorithm::kOneShot, 64};
constexpr Way kTwoShot{Algorithm::kTwoShot, 32};
constexpr Way kWays[] = {kOneShot, kTwoShot};
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

}  // namespace pyallreduce::test
