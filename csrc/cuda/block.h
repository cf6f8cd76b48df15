// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// A block of the GPU target: `lanes` threads carry data, one more warp the call's signature.
#pragma once

#include <type_traits>

#include "protocol/target.h"

namespace pyallreduce::cuda {

struct Block {
  uint32_t index;
  uint32_t lanes;

  // A value that a lane carries from one phase to the next: here simply a register.
  template <typename V>
  struct PerLane {
    V value{};
    __device__ __forceinline__ V& operator[](uint32_t /*lane*/) { return value; }
    __device__ __forceinline__ const V& operator[](uint32_t /*lane*/) const { return value; }
    // For grid_dependency_wait, of pointers or of what has such bits itself.
    __device__ __forceinline__ uint64_t bits() const {
      if constexpr (std::is_pointer_v<V>) {
        return reinterpret_cast<uint64_t>(value);
      } else {
        return value.bits();
      }
    }
  };

  __device__ __forceinline__ Block() : index(blockIdx.x), lanes(blockDim.x - kSignerLanes) {}

  template <typename Use>
  __device__ __forceinline__ void data(Use use) const {
    if (threadIdx.x < lanes) use(threadIdx.x);
  }
  template <typename Use>
  __device__ __forceinline__ void signer(Use use) const {
    if (threadIdx.x >= lanes) use(threadIdx.x - lanes);
  }
  template <typename Use>
  __device__ __forceinline__ void leader(Use use) const {
    if (threadIdx.x == 0) use();
  }
  // A barrier.
  __device__ __forceinline__ void meet() const { __syncthreads(); }
  // Whether all lanes say yes; a barrier of the block.
  __device__ __forceinline__ bool all(bool ok) const { return __syncthreads_and(ok) != 0; }
};

}  // namespace pyallreduce::cuda
