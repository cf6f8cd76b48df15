// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/capture.h"

namespace pyallreduce::cuda {

// Never throws: where CUDA does not say, the launch that follows will.
CaptureEnd capture_end(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  const cudaGraphNode_t* nodes = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t asked =
      cudaStreamGetCaptureInfo(stream, &status, &capture, nullptr, &nodes, nullptr, &count);
#else
  const cudaError_t asked =
      cudaStreamGetCaptureInfo_v2(stream, &status, &capture, nullptr, &nodes, &count);
#endif
  if (asked != cudaSuccess) cudaGetLastError();
  if (asked != cudaSuccess || status != cudaStreamCaptureStatusActive) return {};
  return {capture, count == 1 ? nodes[0] : nullptr};
}

}  // namespace pyallreduce::cuda
