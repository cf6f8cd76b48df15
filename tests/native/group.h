// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as threads of one process, over slabs in plain memory.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "host/host_rank.h"
#include "layout.h"
#include "portion.h"

namespace pyallreduce::test {

// Of waits that should not end by it. Mutants, which hang, are given less.
inline uint32_t usual_deadline_ms() {
  const char* given = std::getenv("PYALLREDUCE_TEST_DEADLINE_MS");
  return given != nullptr ? static_cast<uint32_t>(std::atoi(given)) : 20'000;
}

struct Group {
  Layout layout;
  std::vector<std::vector<Words>> slabs;
  std::vector<Record> records;
  std::vector<std::unique_ptr<host::HostRank>> ranks;

  explicit Group(uint32_t world, uint32_t deadline_ms = usual_deadline_ms(),
                 uint32_t notice_ms = 5'000, uint64_t slab_bytes = 2u << 20)
      : layout(make_layout(world, slab_bytes)), records(world) {
    for (uint32_t r = 0; r < world; ++r) slabs.emplace_back(layout.bytes / sizeof(Words));
    begin(1, deadline_ms, notice_ms);
    std::vector<uint64_t> addresses;
    for (uint32_t r = 0; r < world; ++r) addresses.push_back(address(r));
    for (uint32_t r = 0; r < world; ++r) {
      const auto record = reinterpret_cast<uint64_t>(&records[r]);
      ranks.push_back(std::make_unique<host::HostRank>(r, layout, addresses, record));
    }
  }

  uint32_t world() const { return layout.world; }
  uint64_t address(uint32_t rank) const { return reinterpret_cast<uint64_t>(slabs[rank].data()); }
  Slab slab(uint32_t rank) { return Slab{reinterpret_cast<char*>(address(rank)), &layout}; }

  // Arms every slab, as slab.py does. No rank may be in a call.
  void begin(uint32_t generation, uint32_t deadline_ms = usual_deadline_ms(),
             uint32_t notice_ms = 5'000) {
    for (uint32_t r = 0; r < world(); ++r) {
      char* base = reinterpret_cast<char*>(address(r));
      for (const Region& region : regions(layout)) {
        std::memset(base + region.offset, region.armed ? 0xff : 0, region.bytes);
      }
      std::memcpy(base + layout.control + sizeof(uint32_t), &generation, sizeof generation);
      arm(records[r], generation, deadline_ms, notice_ms);
    }
  }

  // Whether every mailbox of every slab is empty, as it is between calls.
  bool all_armed() {
    for (uint32_t r = 0; r < world(); ++r) {
      for (const Region& region : regions(layout)) {
        const char* at = reinterpret_cast<const char*>(address(r)) + region.offset;
        for (uint64_t i = 0; region.armed && i < region.bytes; ++i) {
          if (at[i] != '\xff') return false;
        }
      }
    }
    return true;
  }

  // `body(rank)` on a thread of each rank.
  template <typename Body>
  void run(Body body) {
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < world(); ++r) threads.emplace_back([&body, r] { body(r); });
    for (std::thread& thread : threads) thread.join();
  }
};

// A message on memory aligned to 16 bytes, with room behind it.
template <typename T>
struct Message {
  std::vector<Words> data;
  uint32_t elements;

  explicit Message(uint32_t n) : data(n * sizeof(T) / sizeof(Words) + 2), elements(n) {}
  T* begin() { return reinterpret_cast<T*>(data.data()); }
  T& operator[](uint32_t i) { return begin()[i]; }
  uint64_t address() { return reinterpret_cast<uint64_t>(data.data()); }
};

}  // namespace pyallreduce::test
