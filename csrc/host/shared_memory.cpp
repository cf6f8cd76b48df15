// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "host/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "host/descriptor.h"
#include "host/process.h"

namespace pyallreduce::host {
namespace {

[[noreturn]] void fail(const std::string& what, int error = errno) {
  throw SharedMemoryError(what + ": " + std::strerror(error));
}

// Reserved now: without it a full machine would answer a later store with SIGBUS. In pieces: some
// kernels let a signal interrupt this, and undo what they had.
void reserve(int fd, uint64_t bytes) {
  constexpr uint64_t piece = 1 << 20;
  for (uint64_t at = 0; at < bytes;) {
    const uint64_t size = std::min(piece, bytes - at);
    const int error = ::posix_fallocate(fd, static_cast<off_t>(at), static_cast<off_t>(size));
    if (error == 0) {
      at += size;
    } else if (error != EINTR) {
      fail("reserving " + std::to_string(bytes) + " bytes of shared memory", error);
    }
  }
}

uint64_t start_time_of(int64_t pid) {
  const auto facts = process_facts(pid);
  if (!facts) {
    throw SharedMemoryError("process " + std::to_string(pid) + " is gone or hidden from this one");
  }
  return facts->start_time;
}

uint64_t inode_of(int fd) {
  struct stat facts{};
  if (::fstat(fd, &facts) != 0) fail("fstat of shared memory");
  return facts.st_ino;
}

}  // namespace

SharedMemory::SharedMemory(uint64_t bytes) : bytes_(bytes) {
  fd_ = above_standard(::memfd_create("pyallreduce", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd_ < 0) fail("memfd_create");
  try {
    reserve(fd_, bytes);
    if (::fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) fail("sealing shared memory");
    map();
  } catch (...) {
    close();
    throw;
  }
}

SharedMemory::SharedMemory(const Offer& offer) : bytes_(offer.bytes) {
  const std::string path = "/proc/" + std::to_string(offer.pid) + "/fd/" + std::to_string(offer.fd);
  if (start_time_of(offer.pid) != offer.start_time) {
    throw SharedMemoryError("process " + std::to_string(offer.pid) +
                            " is not the one that offered");
  }
  fd_ = above_standard(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (fd_ < 0) fail("opening " + path);
  try {
    struct stat facts{};
    if (::fstat(fd_, &facts) != 0) fail("fstat of " + path);
    if (facts.st_ino != offer.inode || static_cast<uint64_t>(facts.st_size) != offer.bytes) {
      throw SharedMemoryError(path + " is not the memory that was offered");
    }
    map();
  } catch (...) {
    close();
    throw;
  }
}

SharedMemory::~SharedMemory() { close(); }

void SharedMemory::map() {
  void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (at == MAP_FAILED) fail("mapping " + std::to_string(bytes_) + " bytes of shared memory");
  address_ = static_cast<char*>(at);
}

Offer SharedMemory::offer() const {
  const int64_t pid = ::getpid();
  return Offer{pid, start_time_of(pid), fd_, inode_of(fd_), bytes_};
}

void SharedMemory::write(uint64_t offset, const std::string& data) {
  constexpr size_t size = sizeof(uint32_t);
  if (offset % size != 0) throw std::invalid_argument("the offset is not a multiple of 4 bytes");
  size_t done = 0;
  for (; done + size <= data.size(); done += size) {
    uint32_t word;
    std::memcpy(&word, data.data() + done, size);
    __atomic_store_n(reinterpret_cast<uint32_t*>(address_ + offset + done), word, __ATOMIC_RELAXED);
  }
  std::memcpy(address_ + offset + done, data.data() + done, data.size() - done);
}

void SharedMemory::close() noexcept {
  if (address_ != nullptr) ::munmap(address_, bytes_);
  if (fd_ >= 0) ::close(fd_);
  address_ = nullptr;
  fd_ = -1;
}

}  // namespace pyallreduce::host
