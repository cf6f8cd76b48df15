// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_memory.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "cuda/error.h"
#include "cuda/kernels.h"

namespace pyallreduce::cuda {
namespace {

// A stream of its own: the default stream would wait for, and hold up, the program's other work.
class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void finish(const std::string& what) const { check(cudaStreamSynchronize(stream_), what); }

 private:
  cudaStream_t stream_{};
};

std::string print_uuid(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits;
  }
  return text;
}

}  // namespace

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  cudaGetLastError();
  return count;
}

int driver_cuda_version() noexcept {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
  cudaGetLastError();
  return version;
}

DeviceFacts device_facts(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device),
        "properties of device " + std::to_string(device));
  char bus_id[32] = "";
  check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device), "PCI bus id");
  const DeviceScope scope(device);
  return DeviceFacts{print_uuid(properties.uuid),
                     properties.name,
                     bus_id,
                     properties.major * 10 + properties.minor,
                     properties.multiProcessorCount,
                     has_kernels()};
}

DeviceMemory::DeviceMemory(int device, uint64_t bytes, uint64_t lead)
    : device_(device), bytes_(bytes), lead_(lead), owner_(true) {
  const DeviceScope scope(device_);
  void* at = nullptr;
  check(cudaMalloc(&at, lead_ + bytes_),
        "allocating a slab of " + std::to_string(lead_ + bytes_) + " bytes");
  address_ = static_cast<char*>(at) + lead_;
}

DeviceMemory::DeviceMemory(int device, uint64_t bytes, const std::string& handle, uint64_t lead)
    : device_(device), bytes_(bytes), lead_(lead), owner_(false) {
  cudaIpcMemHandle_t raw;
  if (handle.size() != sizeof raw) {
    throw std::invalid_argument("an IPC handle has " + std::to_string(sizeof raw) + " bytes, not " +
                                std::to_string(handle.size()));
  }
  std::memcpy(&raw, handle.data(), sizeof raw);
  const DeviceScope scope(device_);
  void* at = nullptr;
  check(cudaIpcOpenMemHandle(&at, raw, cudaIpcMemLazyEnablePeerAccess), "opening a peer's slab");
  address_ = static_cast<char*>(at) + lead_;
}

DeviceMemory::~DeviceMemory() {
  try {
    close();
  } catch (const CudaError&) {
    // The context is gone, and the memory with it.
  }
}

std::string DeviceMemory::handle() const {
  const DeviceScope scope(device_);
  cudaIpcMemHandle_t raw;
  check(cudaIpcGetMemHandle(&raw, address_ - lead_), "exporting a slab");
  return std::string(reinterpret_cast<const char*>(&raw), sizeof raw);
}

void DeviceMemory::fill(uint64_t offset, uint64_t bytes, int value) {
  check_range(offset, bytes);
  const DeviceScope scope(device_);
  const Stream stream;
  check(cudaMemsetAsync(address_ + offset, value, bytes, stream), "filling a slab");
  stream.finish("filling a slab");
}

void DeviceMemory::write(uint64_t offset, const std::string& data) {
  check_range(offset, data.size());
  const DeviceScope scope(device_);
  const Stream stream;
  check(
      cudaMemcpyAsync(address_ + offset, data.data(), data.size(), cudaMemcpyHostToDevice, stream),
      "writing to a slab");
  stream.finish("writing to a slab");
}

std::string DeviceMemory::read(uint64_t offset, uint64_t bytes) const {
  check_range(offset, bytes);
  std::string data(bytes, '\0');
  const DeviceScope scope(device_);
  const Stream stream;
  check(cudaMemcpyAsync(data.data(), address_ + offset, bytes, cudaMemcpyDeviceToHost, stream),
        "reading a slab");
  stream.finish("reading a slab");
  return data;
}

void DeviceMemory::close() {
  if (address_ == nullptr) return;
  char* const address = address_ - lead_;
  address_ = nullptr;
  const DeviceScope scope(device_);
  if (owner_) {
    check(cudaFree(address), "freeing a slab");
  } else {
    check(cudaIpcCloseMemHandle(address), "closing a peer's slab");
  }
}

void DeviceMemory::check_range(uint64_t offset, uint64_t bytes) const {
  if (address_ == nullptr) throw std::runtime_error("this slab is closed");
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw std::out_of_range(std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                            " of a slab of " + std::to_string(bytes_));
  }
}

}  // namespace pyallreduce::cuda
