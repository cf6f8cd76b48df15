// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// From run-time values to template arguments, in one place for both targets.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "protocol/call.h"
#include "protocol/numeric.h"

namespace pyallreduce {

template <typename T>
struct Of {
  using type = T;
};

template <typename Use>
void with_world(uint32_t world, Use use) {
  switch (world) {
    case 2:
      return use(std::integral_constant<int, 2>{});
    case 3:
      return use(std::integral_constant<int, 3>{});
    case 4:
      return use(std::integral_constant<int, 4>{});
    case 5:
      return use(std::integral_constant<int, 5>{});
    case 6:
      return use(std::integral_constant<int, 6>{});
    case 7:
      return use(std::integral_constant<int, 7>{});
    case 8:
      return use(std::integral_constant<int, 8>{});
  }
  throw std::invalid_argument("world size " + std::to_string(world) + " is not one of 2 to 8");
}

template <typename Use>
void with_type(DataType dtype, Use use) {
  switch (dtype) {
    case DataType::kFloat32:
      return use(Of<float>{});
    case DataType::kFloat16:
      return use(Of<Float16>{});
    case DataType::kBFloat16:
      return use(Of<BFloat16>{});
  }
  throw std::invalid_argument("dtype code " + std::to_string(static_cast<uint32_t>(dtype)) +
                              " is not one of 0 (float32), 1 (float16), 2 (bfloat16)");
}

}  // namespace pyallreduce
