// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// 16 bytes of T: load, store, and the one order of summation (fp32, rank 0 to N-1).
#pragma once

#include <type_traits>

#include "protocol/numeric.h"

namespace pyallreduce {

// "Nothing here yet". A NaN in float32 and twice a NaN in half and bfloat16, so that only a NaN
// ever has to give way to it; all ones, so that a byte fill arms a mailbox.
constexpr uint32_t kSentinel = 0xffffffffu;
constexpr uint32_t kOtherNan = 0x7fff7fffu;  // NaN in the same three types: what a payload becomes

PYALLREDUCE_FN Words armed() { return Words{{kSentinel, kSentinel, kSentinel, kSentinel}}; }
PYALLREDUCE_FN Words poison() { return Words{{kOtherNan, kOtherNan, kOtherNan, kOtherNan}}; }

PYALLREDUCE_FN bool pending(const Words& v) {
  return v.w[0] == kSentinel || v.w[1] == kSentinel || v.w[2] == kSentinel || v.w[3] == kSentinel;
}

// Integer comparison: no subnormal is flushed, and no NaN but the sentinel changes its bits.
PYALLREDUCE_FN Words canonical(Words v) {
  for (int i = 0; i < 4; ++i) v.w[i] = v.w[i] == kSentinel ? kOtherNan : v.w[i];
  return v;
}

template <typename T>
constexpr uint32_t kElements = sizeof(Words) / sizeof(T);

template <typename T>
PYALLREDUCE_FN T element(const Words& v, uint32_t i);
template <>
PYALLREDUCE_FN float element<float>(const Words& v, uint32_t i) {
  return bits_float(v.w[i]);
}
template <>
PYALLREDUCE_FN Float16 element<Float16>(const Words& v, uint32_t i) {
  return Float16{static_cast<uint16_t>(v.w[i / 2] >> 16 * (i % 2))};
}
template <>
PYALLREDUCE_FN BFloat16 element<BFloat16>(const Words& v, uint32_t i) {
  return BFloat16{static_cast<uint16_t>(v.w[i / 2] >> 16 * (i % 2))};
}

PYALLREDUCE_FN void put_element(Words& v, uint32_t i, float value) { v.w[i] = float_bits(value); }
template <typename Half>
PYALLREDUCE_FN void put_element(Words& v, uint32_t i, Half value) {
  v.w[i / 2] = i % 2 == 0 ? value.bits : v.w[i / 2] | uint32_t{value.bits} << 16;
}

// Stores the first `count` elements of a vector. A loop of few instructions, and rarely run: what a
// kernel jumps over it has to fetch.
template <typename T>
PYALLREDUCE_FN void store_part(Words* at, uint32_t count, Words v) {
  constexpr uint32_t bits = 8 * sizeof(T);
#pragma unroll 1
  for (uint32_t i = 0; i < count; ++i) {
    reinterpret_cast<T*>(at)[i] = element<T>(v, 0);
    for (int w = 0; w < 4; ++w) {
      const uint64_t two = v.w[w] | uint64_t{w < 3 ? v.w[w + 1] : 0} << 32;
      v.w[w] = static_cast<uint32_t>(two >> bits);
    }
  }
}

template <typename T>
PYALLREDUCE_FN Words load_part(const Words* at, uint32_t count) {
  Words v{{0, 0, 0, 0}};
  for (uint32_t i = 0; i < kElements<T>; ++i) {
    if (i < count) put_element(v, i, reinterpret_cast<const T*>(at)[i]);
  }
  return v;
}

// Sums in fp32 from rank 0 to rank N-1 and rounds once. It starts from rank 0's value and not from
// +0, so that -0 + -0 is -0. A sum that is NaN is one NaN in each type, and not the sentinel
// (numeric.h).
template <typename T, int kWorld>
PYALLREDUCE_FN uint32_t sum_of_words(const uint32_t (&by_rank)[kWorld]) {
  if constexpr (std::is_same_v<T, float>) {
    float sum = bits_float(by_rank[0]);
#pragma unroll
    for (int rank = 1; rank < kWorld; ++rank) sum += bits_float(by_rank[rank]);
    from_float(sum, sum);
    return float_bits(sum);
  } else if constexpr (kWorld == 2) {
    return sum_of_two<T>(by_rank[0], by_rank[1]);
  } else {
    Pair sum = pair_of<T>(by_rank[0]);
#pragma unroll
    for (int rank = 1; rank < kWorld; ++rank) {
      const Pair next = pair_of<T>(by_rank[rank]);
      sum.low += next.low;
      sum.high += next.high;
    }
    return rounded<T>(sum);
  }
}

template <typename T, int kWorld>
PYALLREDUCE_FN Words reduce(const Words (&by_rank)[kWorld]) {
  Words result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t words[kWorld];
#pragma unroll
    for (int rank = 0; rank < kWorld; ++rank) words[rank] = by_rank[rank].w[i];
    result.w[i] = sum_of_words<T>(words);
  }
  return result;
}

}  // namespace pyallreduce
