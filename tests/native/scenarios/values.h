// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Values.
#pragma once

#include "protocol/numeric.h"
#include "scenarios/tools.h"

namespace pyallreduce::test {

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
  for (const Way& way : kWays) {
    Group group(2);
    std::vector<std::vector<uint32_t>> results(2);
    group.run([&](uint32_t r) {
      Message<float> x(kCases * 4);
      for (uint32_t i = 0; i < x.elements; ++i) x[i] = from_bits(cases[i % kCases][r]);
      EXPECT(all_reduce(group, r, x, x, way.in(2)) == 0);
      for (uint32_t i = 0; i < x.elements; ++i) {
        const uint32_t expected = cases[i % kCases][2];
        EXPECT(expected == kNan ? std::isnan(x[i]) : bits(x[i]) == expected);
        results[r].push_back(bits(x[i]));
      }
    });
    EXPECT(results[0] == results[1]);
  }
}

// fp32 from rank 0 on, rounded once: 2^24 + 1 - 2^24 in that order is 0, in others 1; and in
// bfloat16 256 + 1 + 1 is 258, where rounding twice leaves 256. Each rank's place in the sum
// counts.
void order() {
  const float parts[] = {1.0f, 16777216.0f, -16777216.0f, 1.0f};
  for (uint32_t world = 3; world <= 4; ++world) {
    for (const Way& way : kWays) {
      for (uint32_t turn = 0; turn < world; ++turn) {
        const auto part = [&](uint32_t r) { return parts[(r + turn) % world]; };
        float expected = part(0);
        for (uint32_t r = 1; r < world; ++r) expected += part(r);
        Group group(world);
        group.run([&](uint32_t r) {
          Message<float> x(40);
          for (uint32_t i = 0; i < 40; ++i) x[i] = part(r);
          EXPECT(all_reduce(group, r, x, x, way.in(1)) == 0);
          for (uint32_t i = 0; i < 40; ++i) EXPECT(x[i] == expected);
          Message<BFloat16> h(41);
          const uint16_t one_of[] = {0x4380, 0x3f80, 0x3f80, 0};  // 256, 1, 1, 0
          for (uint32_t i = 0; i < 41; ++i) h[i].bits = one_of[r];
          EXPECT(all_reduce(group, r, h, h, way.in(1)) == 0);
          for (uint32_t i = 0; i < 41; ++i) EXPECT(h[i].bits == 0x4381);  // 258
        });
      }
    }
  }
}

}  // namespace pyallreduce::test
