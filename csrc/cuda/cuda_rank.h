// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/capture.h"
#include "rank.h"

namespace pyallreduce::cuda {

// Registers a page of host memory with CUDA until it is closed.
class RegisteredPage {
 public:
  RegisteredPage(int device, uint64_t address, uint64_t bytes);
  ~RegisteredPage() { close(); }
  RegisteredPage(const RegisteredPage&) = delete;
  RegisteredPage& operator=(const RegisteredPage&) = delete;
  uint64_t device_address() const { return device_address_; }
  void close() noexcept;

 private:
  int device_;
  void* address_;
  uint64_t device_address_ = 0;
};

// Launches the kernels on a stream of `device`; asynchronous.
class CudaRank final : private RegisteredPage, public Rank {
 public:
  CudaRank(int device, uint32_t rank, const Layout& layout, const std::vector<uint64_t>& slabs,
           uint64_t record);

 private:
  void release() noexcept override { RegisteredPage::close(); }
  void launch(const Call& call, DataType dtype, const Plan& plan, uint64_t stream) override;
  void launch_refusal(const Call& call, uint64_t stream) override;
  void launch_ping_pong(const Call& call, uint64_t stream) override;

  int device_;
  // Behind the last launch that was captured. Two threads that capture calls of a rank at once
  // spoil it: then launches are slower, nothing else.
  CaptureEnd ours_;
};

}  // namespace pyallreduce::cuda
