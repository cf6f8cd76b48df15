// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that processes share without a name: a memfd, opened by peers through /proc/<pid>/fd.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyallreduce::host {

// What a peer needs to open it, and to be sure that it opened this and nothing else.
struct Offer {
  int64_t pid;
  uint64_t start_time;  // of that process, in clock ticks since boot: pids are used again
  int64_t fd;
  uint64_t inode;
  uint64_t bytes;
};

class SharedMemoryError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class SharedMemory {
 public:
  // Creates `bytes` zero bytes, reserved at once. Throws SharedMemoryError with the system's words.
  explicit SharedMemory(uint64_t bytes);
  // Maps what another process offers. Throws SharedMemoryError when it is gone, forbidden or
  // another.
  explicit SharedMemory(const Offer& offer);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  char* address() const { return address_; }
  uint64_t bytes() const { return bytes_; }
  Offer offer() const;
  // From a multiple of 4 bytes on. Stores each word once: memcpy may store one again when a peer
  // has taken it already, and armed its place anew.
  void write(uint64_t offset, const std::string& data);
  void close() noexcept;

 private:
  void map();

  int fd_ = -1;
  char* address_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace pyallreduce::host
