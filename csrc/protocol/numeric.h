// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The adapter to each target's half and bfloat16: storage types and their conversion to and from
// fp32, rounding to nearest even. On the GPU these are CUDA's; the host has its own, because it is
// built where CUDA's headers are not. tests/ranks/test_communicator.py compares the host's with
// torch's.
#pragma once

#include <cstring>

#include "protocol/target.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyallreduce {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// The two halves of a word, the first of them in its low bits.
struct Pair {
  float low, high;
};

#if defined(__CUDACC__)

// The same 32 bits as another type. (Put together by halves they would take two instructions each.)
template <typename To, typename From>
PYALLREDUCE_FN To same_bits(const From& from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

PYALLREDUCE_FN uint32_t float_bits(float value) { return __float_as_uint(value); }
PYALLREDUCE_FN float bits_float(uint32_t bits) { return __uint_as_float(bits); }

PYALLREDUCE_FN void from_float(float value, float& out) { out = value; }

template <typename Half>
PYALLREDUCE_FN Pair pair_of(uint32_t word);
template <>
PYALLREDUCE_FN Pair pair_of<BFloat16>(uint32_t word) {
  return Pair{bits_float(word << 16), bits_float(word & 0xffff0000u)};
}
template <>
PYALLREDUCE_FN Pair pair_of<Float16>(uint32_t word) {
  return Pair{__low2float(same_bits<__half2>(word)), __high2float(same_bits<__half2>(word))};
}

template <typename Half>
PYALLREDUCE_FN uint32_t rounded(Pair v);
template <>
PYALLREDUCE_FN uint32_t rounded<BFloat16>(Pair v) {
  return same_bits<uint32_t>(__floats2bfloat162_rn(v.low, v.high));
}
template <>
PYALLREDUCE_FN uint32_t rounded<Float16>(Pair v) {
  return same_bits<uint32_t>(__floats2half2_rn(v.low, v.high));
}

// One instruction. fp32 has more than twice the digits of either, and two: rounding to fp32 first
// would change no bit (Figueroa, "When is double rounding innocuous?", 1995).
template <typename Half>
PYALLREDUCE_FN uint32_t sum_of_two(uint32_t a, uint32_t b);
template <>
PYALLREDUCE_FN uint32_t sum_of_two<BFloat16>(uint32_t a, uint32_t b) {
  return same_bits<uint32_t>(
      __hadd2_rn(same_bits<__nv_bfloat162>(a), same_bits<__nv_bfloat162>(b)));
}
template <>
PYALLREDUCE_FN uint32_t sum_of_two<Float16>(uint32_t a, uint32_t b) {
  return same_bits<uint32_t>(__hadd2_rn(same_bits<__half2>(a), same_bits<__half2>(b)));
}

#else

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(BFloat16 value) { return bits_float(uint32_t{value.bits} << 16); }
inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;  // exact: 10 bits
  return bits_float(sign | float_bits(subnormal));
}

// A sum that is NaN is this one NaN, as on the GPU: which operand's payload an x86 addition keeps
// depends on how the compiler orders the two.
inline void from_float(float value, float& out) {
  const bool nan = (float_bits(value) & 0x7fffffffu) > 0x7f800000u;
  out = nan ? bits_float(0x7fffffffu) : value;
}

inline void from_float(float value, BFloat16& out) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out.bits = 0x7fffu;  // NaN, as CUDA rounds it
    return;
  }
  out.bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void from_float(float value, Float16& out) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) {
    out.bits = 0x7fffu;  // NaN, as CUDA rounds it
  } else if (magnitude >= 0x477ff000u) {
    out.bits = sign | 0x7c00u;  // 65520 and more round to infinity
  } else if (magnitude >= 0x38800000u) {
    const uint32_t rebiased = magnitude - (112u << 23);
    out.bits = sign | static_cast<uint16_t>((rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
  } else {
    // Subnormal: adding 0.5 leaves the quotient by 2^-24, rounded to nearest even, in the low bits.
    const float shifted = bits_float(magnitude) + 0.5f;
    out.bits = sign | static_cast<uint16_t>(float_bits(shifted) - float_bits(0.5f));
  }
}

template <typename Half>
Pair pair_of(uint32_t word) {
  return Pair{to_float(Half{static_cast<uint16_t>(word)}),
              to_float(Half{static_cast<uint16_t>(word >> 16)})};
}
template <typename Half>
uint32_t rounded(Pair v) {
  Half low, high;
  from_float(v.low, low);
  from_float(v.high, high);
  return low.bits | uint32_t{high.bits} << 16;
}
template <typename Half>
uint32_t sum_of_two(uint32_t a, uint32_t b) {
  const Pair x = pair_of<Half>(a), y = pair_of<Half>(b);
  return rounded<Half>(Pair{x.low + y.low, x.high + y.high});
}

#endif

}  // namespace pyallreduce
