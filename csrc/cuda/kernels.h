// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "rank.h"

namespace pyallreduce::cuda {

// A programmatic dependent's blocks are in place before the kernel before it has finished, if that
// is one of ours. Ignored before sm_90, whose kernels have no griddepcontrol.
enum class Start { kPlain, kDependent };

// All throw CudaError.
void launch(const Call& call, DataType dtype, const Plan& plan, cudaStream_t stream, Start start);
void launch_refusal(const Call& call, cudaStream_t stream);
void launch_ping_pong(const Call& call, cudaStream_t stream);
// Loads every kernel of this world size on the current device: a lazy load in the middle of a call
// would wait for the kernels that wait for it.
void load_kernels(uint32_t world);
// Whether the module carries code for the current device.
bool has_kernels();

}  // namespace pyallreduce::cuda
