// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// A slab in device memory: allocated by its owner with cudaMalloc (never from a caching allocator:
// an export shares the whole allocation), opened by peers through CUDA IPC.
#pragma once

#include <cstdint>
#include <string>

namespace pyallreduce::cuda {

// What the runtime says of one device.
struct DeviceFacts {
  std::string uuid;  // "GPU-..." as NVML prints it
  std::string name;
  std::string pci_bus_id;
  int capability;  // 90 is 9.0
  int sm_count;
  bool has_kernel;
};

int device_count() noexcept;         // 0 without a driver
int driver_cuda_version() noexcept;  // 13000 is 13.0; 0 without a driver
DeviceFacts device_facts(int device);

class DeviceMemory {
 public:
  // `lead`: bytes of the allocation that lie before it.
  DeviceMemory(int device, uint64_t bytes, uint64_t lead);                             // owner
  DeviceMemory(int device, uint64_t bytes, const std::string& handle, uint64_t lead);  // peer
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  uint64_t address() const { return reinterpret_cast<uint64_t>(address_); }
  uint64_t bytes() const { return bytes_; }
  std::string handle() const;  // 64 bytes

  // All are complete when they return; bounded by the work that is already on the device.
  void fill(uint64_t offset, uint64_t bytes, int value);
  void write(uint64_t offset, const std::string& data);
  std::string read(uint64_t offset, uint64_t bytes) const;

  void close();

 private:
  void check_range(uint64_t offset, uint64_t bytes) const;

  int device_;
  char* address_ = nullptr;
  uint64_t bytes_;
  uint64_t lead_;
  bool owner_;
};

}  // namespace pyallreduce::cuda
