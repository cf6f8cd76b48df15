// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace pyallreduce::cuda {

// Where the capture of a stream stands: which one it is, and the node that what comes next would
// follow. No node where nothing has been captured yet, where the next would follow several, where
// nothing is captured at all, or where CUDA does not say.
struct CaptureEnd {
  unsigned long long capture = 0;
  cudaGraphNode_t node = nullptr;
};

inline bool operator==(const CaptureEnd& a, const CaptureEnd& b) {
  return a.capture == b.capture && a.node == b.node;
}

CaptureEnd capture_end(cudaStream_t stream);

}  // namespace pyallreduce::cuda
