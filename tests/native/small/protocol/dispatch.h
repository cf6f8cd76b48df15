// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Stands before csrc/protocol/dispatch.h in the include path of test programs, which have a third
// of the instances to compile: two to four ranks in two dtypes, or with FLOAT_ALONE all world sizes
// in one.
#pragma once

#include <type_traits>

#include "protocol/call.h"
#include "protocol/numeric.h"

namespace pyallreduce {

template <typename T>
struct Of {
  using type = T;
};

#ifdef FLOAT_ALONE

template <typename Use>
void with_world(uint32_t world, Use use) {
  if (world == 2) return use(std::integral_constant<int, 2>{});
  if (world == 3) return use(std::integral_constant<int, 3>{});
  if (world == 4) return use(std::integral_constant<int, 4>{});
  if (world == 5) return use(std::integral_constant<int, 5>{});
  if (world == 6) return use(std::integral_constant<int, 6>{});
  if (world == 7) return use(std::integral_constant<int, 7>{});
  use(std::integral_constant<int, 8>{});
}

template <typename Use>
void with_type(DataType /*dtype*/, Use use) {
  use(Of<float>{});
}

#else

template <typename Use>
void with_world(uint32_t world, Use use) {
  if (world == 2) return use(std::integral_constant<int, 2>{});
  if (world == 3) return use(std::integral_constant<int, 3>{});
  use(std::integral_constant<int, 4>{});
}

template <typename Use>
void with_type(DataType dtype, Use use) {
  if (dtype == DataType::kFloat32) return use(Of<float>{});
  use(Of<BFloat16>{});
}

#endif

}  // namespace pyallreduce
