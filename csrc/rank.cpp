// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "rank.h"

#include <stdexcept>
#include <string>

#include "layout.h"
#include "portion.h"

namespace pyallreduce {
namespace {

constexpr uint64_t kVector = sizeof(Words);
constexpr uint32_t kTagMask = 0x7fffffffu;

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
  if (const uint32_t failed = state()) {
    __atomic_fetch_add(&record_->drained, 1, __ATOMIC_RELAXED);  // as a kernel's would be
    return failed;
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
  return state();
}

void Rank::refuse(uint32_t code, uint64_t stream) {
  Call call = base_;
  call.shape = kRefusedShape;
  call.tag = code & kTagMask;
  launch_refusal(call, stream);
}

void Rank::ping_pong(uint32_t rounds, uint32_t seed, uint64_t stream) {
  Call call = base_;
  call.vectors = rounds;
  call.tag = seed;
  launch_ping_pong(call, stream);
}

Edge Rank::edge(uint32_t peer) const {
  if (peer >= base_.layout.world) throw std::out_of_range("no such peer");
  return record_->edges[peer];
}

// Acquire: pairs with the release of the state word, so that the record's fields are whole.
uint32_t Rank::state() const { return __atomic_load_n(&record_->state, __ATOMIC_ACQUIRE); }

Record Rank::report() const { return read(*record_); }

void Rank::raise_host_stop(uint32_t word) {
  __atomic_store_n(&record_->host.stop, word, __ATOMIC_RELEASE);
}

// Acquire: as in state().
Record read(const Record& record) {
  const uint32_t state = __atomic_load_n(&record.state, __ATOMIC_ACQUIRE);
  Record copy = record;
  copy.state = state;
  return copy;
}

void arm(Record& record, uint32_t generation, uint32_t deadline_ms, uint32_t notice_ms) {
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
