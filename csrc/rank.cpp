// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "rank.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "layout.h"
#include "portion.h"

namespace pyallreduce {
namespace {

constexpr uint64_t kVector = sizeof(Words);
constexpr uint32_t kTagMask = 0x7fffffffu;
constexpr std::chrono::seconds kLeave{2};  // many times a call's look at its stop words

void check(const Plan& plan, uint32_t world, uint64_t in, uint64_t out) {
  if (plan.blocks < 1 || plan.blocks > kMaxBlocks) {
    throw std::invalid_argument(std::to_string(plan.blocks) + " blocks: not 1 to " +
                                std::to_string(kMaxBlocks));
  }
  if (plan.lanes < 32 || plan.lanes > max_lanes(world) || plan.lanes % 32 != 0) {
    throw std::invalid_argument(std::to_string(plan.lanes) + " lanes: not a multiple of 32 up to " +
                                std::to_string(max_lanes(world)));
  }
  if (in % kVector != 0 || out % kVector != 0) {
    throw std::invalid_argument("the message is not aligned to 16 bytes");
  }
}

}  // namespace

// A call that uses the memory. It says that it is inside before it asks whether that is closed, and
// close() the other way round, each sequentially consistent: one of them sees the other.
// Happens-before: what a call did precedes, by its leaving and close()'s acquire, the unmapping.
class Rank::Inside {
 public:
  explicit Inside(const Rank& rank) : inside_(rank.inside_) {
    inside_.fetch_add(1, std::memory_order_seq_cst);
    if (!rank.closed_.load(std::memory_order_seq_cst)) return;
    inside_.fetch_sub(1, std::memory_order_release);
    throw Closed("rank " + std::to_string(rank.base_.rank) + ": this communicator is closed");
  }
  ~Inside() { inside_.fetch_sub(1, std::memory_order_release); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  std::atomic<uint32_t>& inside_;
};

uint32_t bytes_of(DataType dtype) { return dtype == DataType::kFloat32 ? 4 : 2; }

Rank::Rank(uint32_t rank, const Layout& layout, const std::vector<uint64_t>& slabs, uint64_t record,
           uint64_t device_record)
    : record_(reinterpret_cast<Record*>(record)) {
  if (slabs.size() != layout.world || rank >= layout.world) {
    throw std::invalid_argument("rank " + std::to_string(rank) + " of " +
                                std::to_string(layout.world) + " with " +
                                std::to_string(slabs.size()) + " slabs");
  }
  base_.layout = layout;
  base_.rank = rank;
  base_.record = reinterpret_cast<Record*>(device_record);
  for (uint32_t hop = 0; hop < layout.world; ++hop) {
    base_.slabs[hop] = reinterpret_cast<char*>(slabs[(rank + hop) % layout.world]);
    // This rank is as far behind that one as is missing to a round.
    base_.boxes[hop].signatures =
        base_.slab_at(hop).signatures((layout.world - hop) % layout.world);
  }
  base_.epochs = base_.own().epoch(0);
  base_.control = base_.own().control();
}

// The mailboxes of an algorithm.
void Rank::address(Call& call, Algorithm algorithm) const {
  const bool one_shot = algorithm == Algorithm::kOneShot;
  call.mailbox = one_shot ? call.layout.one_shot_tile : call.layout.two_shot_tile;
  for (uint32_t hop = 0; hop < world(); ++hop) {
    // Which peer this rank is to the one that is `hop` behind it.
    const uint32_t peer = hop == 0 ? 0 : call.rank - (call.rank + hop < world() ? 0 : 1);
    const Slab slab = call.slab_at(hop);
    call.boxes[hop].data = one_shot ? slab.one_shot(peer) : slab.two_shot(peer);
  }
}

uint32_t Rank::all_reduce(uint64_t in, uint64_t out, uint64_t elements, DataType dtype,
                          const Plan& plan, uint32_t tag, uint64_t stream) {
  const Inside inside(*this);
  if (const uint32_t state = failed()) {
    __atomic_fetch_add(&record_->drained, 1, __ATOMIC_RELAXED);  // as a kernel's would be
    return state;
  }
  check(plan, world(), in, out);
  const uint64_t bytes = elements * bytes_of(dtype);

  Call call = base_;
  address(call, plan.algorithm);
  call.tag = tag & kTagMask;
  call.vectors = static_cast<uint32_t>(divide_up(bytes, kVector)) & kTagMask;
  __atomic_fetch_add(&record_->launched, 1, __ATOMIC_RELAXED);  // read by watchdogs
  uint64_t offset = 0;
  for (uint32_t chunk = 0; chunk == 0 || offset < bytes; ++chunk) {
    const Portion portion = next_portion(base_.layout, plan, bytes - offset);
    call.in = reinterpret_cast<const void*>(in + offset);
    call.out = reinterpret_cast<void*>(out + offset);
    call.elements = static_cast<uint32_t>(portion.bytes / bytes_of(dtype));
    call.tile = portion.tile;
    call.stride = portion.tile * plan.blocks;
    call.laps = portion.laps;
    call.shape = encode_shape(Shape{dtype, plan.algorithm, static_cast<uint32_t>(bytes % kVector),
                                    plan.blocks, portion.laps, chunk});
    launch(call, dtype, plan, stream);
    offset += portion.bytes;
  }
  return failed();
}

void Rank::refuse(uint32_t code, uint64_t stream) {
  const Inside inside(*this);
  Call call = base_;
  call.shape = kRefusedShape;
  call.tag = code & kTagMask;
  launch_refusal(call, stream);
}

void Rank::ping_pong(uint32_t rounds, uint32_t seed, uint64_t stream) {
  const Inside inside(*this);
  Call call = base_;
  call.vectors = rounds;
  call.tag = seed;
  launch_ping_pong(call, stream);
}

Edge Rank::edge(uint32_t peer) const {
  if (peer >= base_.layout.world) throw std::out_of_range("no such peer");
  const Inside inside(*this);
  return record_->edges[peer];
}

// Acquire: pairs with the release of the state word, so that the record's fields are whole.
uint32_t Rank::failed() const { return __atomic_load_n(&record_->state, __ATOMIC_ACQUIRE); }

uint32_t Rank::state() const {
  const Inside inside(*this);
  return failed();
}

Record Rank::report() const {
  const Inside inside(*this);
  return read(*record_);
}

void Rank::raise_host_stop(uint32_t word) {
  const Inside inside(*this);
  __atomic_store_n(&record_->host.stop, word, __ATOMIC_RELEASE);
}

bool Rank::close() noexcept {
  closed_.store(true, std::memory_order_seq_cst);
  if (inside_.load(std::memory_order_seq_cst) != 0) {
    const uint32_t generation = __atomic_load_n(&record_->generation, __ATOMIC_RELAXED);
    __atomic_store_n(&record_->host.stop, stop_word(generation, Stop::kHost), __ATOMIC_RELEASE);
  }
  const auto deadline = std::chrono::steady_clock::now() + kLeave;
  while (inside_.load(std::memory_order_acquire) != 0) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  release();
  return true;
}

// Happens-before: what a failure left in the record precedes its state (acquire, as in failed()).
// And who has copied a word of an arming finds, behind the two fences, another state (they carry
// their generation), and copies once more.
Record read(const Record& record) {
  uint32_t state = __atomic_load_n(&record.state, __ATOMIC_ACQUIRE);
  for (;;) {
    Record copy = record;
    copy.state = state;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    const uint32_t now = __atomic_load_n(&record.state, __ATOMIC_ACQUIRE);
    if (now == state) return copy;
    state = now;
  }
}

void arm(Record& record, uint32_t generation, uint32_t deadline_ms, uint32_t notice_ms) {
  // Emptied before anything else is written, for who reads meanwhile.
  __atomic_store_n(&record.state, uint32_t{0}, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  const uint32_t launched = record.launched;
  const uint32_t absent = record.host.absent;
  record = Record{};
  record.host.absent = absent;
  record.host.deadline_ms = deadline_ms;
  record.host.notice_ms = notice_ms;
  record.generation = generation;
  record.launched = launched;
}

void set_deadline(Record& record, uint32_t deadline_ms) {
  __atomic_store_n(&record.host.deadline_ms, deadline_ms, __ATOMIC_RELAXED);
}

}  // namespace pyallreduce
