// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/block.h"
#include "cuda/error.h"
#include "cuda/kernels.h"
#include "protocol/dispatch.h"
#include "protocol/edges.h"
#include "protocol/one_shot.h"
#include "protocol/two_shot.h"

namespace pyallreduce::cuda {
namespace {

template <int kWorld>
constexpr uint32_t kMaxThreads = max_lanes(kWorld) + kSignerLanes;
// Blocks that an SM must have room for. With two, the next call's are in place while this call's
// run; the kernels of many ranks need more registers than that leaves.
template <int kWorld>
constexpr uint32_t kResident = kWorld <= 3 ? 2 : 1;

template <typename T, int kWorld>
__global__ void __launch_bounds__(kMaxThreads<kWorld>, kResident<kWorld>)
    one_shot_kernel(const __grid_constant__ Call call) {
  Block block;
  one_shot<T, kWorld>(block, call);
}

template <typename T, int kWorld>
__global__ void __launch_bounds__(kMaxThreads<kWorld>, kResident<kWorld>)
    two_shot_kernel(const __grid_constant__ Call call) {
  Block block;
  two_shot<T, kWorld>(block, call);
}

template <int kWorld>
__global__ void refusal_kernel(const __grid_constant__ Call call) {
  Block block;
  announce_refusal<kWorld>(block, call);
}

__global__ void ping_pong_kernel(const __grid_constant__ Call call) {
  Block block;
  ping_pong(block, call);
}

template <typename Kernel>
void launch_kernel(Kernel kernel, const Call& call, uint32_t blocks, uint32_t lanes,
                   cudaStream_t stream, Start start = Start::kDependent) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(lanes + kSignerLanes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = start == Start::kDependent ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, call), "launching an all-reduce kernel");
}

}  // namespace

void launch(const Call& call, DataType dtype, const Plan& plan, cudaStream_t stream, Start start) {
  with_type(dtype, [&](auto type) {
    with_world(call.layout.world, [&](auto ranks) {
      using T = typename decltype(type)::type;
      constexpr int kWorld = decltype(ranks)::value;
      const auto kernel = plan.algorithm == Algorithm::kOneShot ? one_shot_kernel<T, kWorld>
                                                                : two_shot_kernel<T, kWorld>;
      launch_kernel(kernel, call, plan.blocks, plan.lanes, stream, start);
    });
  });
}

void launch_refusal(const Call& call, cudaStream_t stream) {
  with_world(call.layout.world, [&](auto ranks) {
    constexpr int kWorld = decltype(ranks)::value;
    launch_kernel(refusal_kernel<kWorld>, call, kMaxBlocks, 32, stream);
  });
}

void launch_ping_pong(const Call& call, cudaStream_t stream) {
  launch_kernel(ping_pong_kernel, call, call.layout.world - 1, 32, stream);
}

void load_kernels(uint32_t world) {
  cudaFuncAttributes facts{};
  check(cudaFuncGetAttributes(&facts, ping_pong_kernel), "loading a kernel");
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    with_type(dtype, [&](auto type) {
      with_world(world, [&](auto ranks) {
        using T = typename decltype(type)::type;
        constexpr int kWorld = decltype(ranks)::value;
        check(cudaFuncGetAttributes(&facts, one_shot_kernel<T, kWorld>), "loading a kernel");
        check(cudaFuncGetAttributes(&facts, two_shot_kernel<T, kWorld>), "loading a kernel");
        check(cudaFuncGetAttributes(&facts, refusal_kernel<kWorld>), "loading a kernel");
      });
    });
  }
}

bool has_kernels() {
  cudaFuncAttributes facts{};
  const bool found = cudaFuncGetAttributes(&facts, refusal_kernel<2>) == cudaSuccess;
  cudaGetLastError();
  return found;
}

}  // namespace pyallreduce::cuda
