// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// One rank's end of a communicator: turns a message into launches of one algorithm. The targets
// differ in `launch` alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "protocol/call.h"

namespace pyallreduce {

// How a message is carried: chosen by policy.py, equal on all ranks.
struct Plan {
  Algorithm algorithm;
  uint32_t blocks;
  uint32_t lanes;  // of a block, a multiple of 32
};

// Who comes when the memory is let go of.
class Closed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Rank {
 public:
  // `slabs`: this process's address of every rank's slab, in rank order. `record`: this rank's, in
  // host memory; `device_record`: the same as the target addresses it.
  Rank(uint32_t rank, const Layout& layout, const std::vector<uint64_t>& slabs, uint64_t record,
       uint64_t device_record);
  virtual ~Rank() = default;
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // Launches one all-reduce; `in` and `out` are aligned to 16 bytes and equal or disjoint. Returns
  // 0, or the state word of the failure that ended this generation: an earlier call's (then nothing
  // was launched), or on the host target this one's.
  uint32_t all_reduce(uint64_t in, uint64_t out, uint64_t elements, DataType dtype,
                      const Plan& plan, uint32_t tag, uint64_t stream);
  // Tells the peers that this rank does not join the call that they are in, or will come to.
  void refuse(uint32_t code, uint64_t stream);

  // Launches the ping-pong of `rounds` with every peer at once; `edge` has what it found.
  void ping_pong(uint32_t rounds, uint32_t seed, uint64_t stream);

  uint32_t state() const;
  Record report() const;           // valid when state() is not 0
  Edge edge(uint32_t peer) const;  // valid when the ping-pong has ended
  void raise_host_stop(uint32_t word);
  // Before the memory is let go of; no kernel may run. What is called from now on throws Closed;
  // calls that other threads are in are told to end. False if they have not left within 2 s: the
  // memory must stay.
  bool close() noexcept;

 protected:
  virtual void release() noexcept {}
  virtual void launch(const Call& call, DataType dtype, const Plan& plan, uint64_t stream) = 0;
  virtual void launch_refusal(const Call& call, uint64_t stream) = 0;
  virtual void launch_ping_pong(const Call& call, uint64_t stream) = 0;
  uint32_t world() const { return base_.layout.world; }

 private:
  class Inside;

  uint32_t failed() const;
  void address(Call& call, Algorithm algorithm) const;

  Call base_{};
  Record* record_;
  mutable std::atomic<uint32_t> inside_{0};  // calls that may use the memory
  std::atomic<bool> closed_{false};
};

uint32_t bytes_of(DataType dtype);

// A copy that is whole where its state says that there was a failure: any rank's record, at any
// time.
Record read(const Record& record);
// Begins a generation in a record. No kernel of its rank may run.
void arm(Record& record, uint32_t generation, uint32_t deadline_ms, uint32_t notice_ms);
// At any time, also under waiting kernels: their next look sees it.
void set_deadline(Record& record, uint32_t deadline_ms);

}  // namespace pyallreduce
