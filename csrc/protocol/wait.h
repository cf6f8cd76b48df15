// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The bounded wait, and the report that it leaves behind. A wait ends by arrival, by a stop word,
// or by its deadline; it never traps. The slow path (clock, stop words) runs once in kPollsPerLook
// polls, and reads the deadline from the record: a kernel parameter would be frozen into a graph.
#pragma once

#include "protocol/call.h"
#include "protocol/memory.h"
#include "protocol/pack.h"

namespace pyallreduce {

constexpr uint64_t kNanosecondsPerMillisecond = 1'000'000;
PYALLREDUCE_FN uint64_t in_nanoseconds(uint32_t milliseconds) {
  return milliseconds * kNanosecondsPerMillisecond;
}

// One block's view of one call: what every wait of that block needs.
struct Turn {
  const Call& call;
  uint32_t block;
  uint32_t epoch;
  uint32_t slot;
  uint32_t generation;
  Stop stop;  // this lane's; kNone while all is well

  PYALLREDUCE_FN Turn(const Call& c, uint32_t b) : call(c), block(b) {
    const Slab mine = c.slab(c.rank);
    epoch = ld_relaxed_sys(&mine.state(b)->epoch);
    slot = epoch % kSlots;
    const Words control = ld_relaxed_sys(mine.control());
    generation = control.w[1];
    stop = stop_of(control.w[0], generation);  // sticky: later calls drain at once
  }

  PYALLREDUCE_FN Slab mine() const { return call.slab(call.rank); }
  PYALLREDUCE_FN Slab peer(uint32_t rank) const { return call.slab(rank); }
  PYALLREDUCE_FN bool ok() const { return stop == Stop::kNone; }
  // Another lane of this block has failed (and reported).
  PYALLREDUCE_FN void fail() {
    if (ok()) stop = Stop::kPeer;
  }

  // The first failure of a generation writes the record; the state word is released last.
  PYALLREDUCE_FN void report(Stop why, uint32_t peer, Phase phase, const Words& theirs,
                             uint64_t waited_ns) {
    stop = why;
    if (atom_exch_relaxed_gpu(mine().reporter(), generation) == generation) return;
    Record* record = call.record;
    record->block = block;
    record->peer = peer;
    record->phase = static_cast<uint32_t>(phase);
    record->algorithm = static_cast<uint32_t>(decode_shape(call.shape).algorithm);
    record->epoch = epoch;
    record->waited_ns = waited_ns;
    record->ours = signature_of(call, epoch);
    record->theirs = theirs;
    st_release_sys(&record->state, stop_word(generation, why));
    if (why == Stop::kPeer) return;  // that peer has told everybody
    for (uint32_t rank = 0; rank < call.layout.world; ++rank) {
      const Stop seen_there = rank == call.rank ? why : Stop::kPeer;
      st_relaxed_sys(call.slab(rank).stop(), stop_word(generation, seen_there));
    }
  }

  // Polls `arrived` until it says yes (true) or the wait has to end (false, and `stop` says why).
  // `peer` is read when the wait ends in vain: `arrived` may update it.
  template <typename Arrived>
  PYALLREDUCE_FN bool wait(const uint32_t& peer, Phase phase, Arrived arrived) {
    if (!ok()) return false;
    uint64_t since = 0;
    bool noticed = false;
    for (uint32_t polls = 1; !arrived(); ++polls) {
      pause_after(polls);
      if (polls % kPollsPerLook != 0) continue;
      const uint64_t waited_ns = nanoseconds() - since;
      if (since == 0) {
        since = waited_ns;
        continue;
      }
      const HostWords host = host_words();
      // Asked again behind clock and host: this process may have been stopped between poll and
      // clock; and what a peer sent before the host heard that it is absent is here by now (the
      // host's word is acquired, and was written after the peer's last grid had ended).
      if (arrived()) break;
      if (give_up(host, peer, phase, waited_ns, noticed)) return false;
    }
    if (noticed) st_relaxed_sys(mine().noticer(), 0);
    return true;
  }

 private:
  PYALLREDUCE_FN HostWords host_words() const {
    const Words v = ld_acquire_sys(reinterpret_cast<const Words*>(&call.record->host));
    return HostWords{v.w[0], v.w[1], v.w[2], v.w[3]};
  }

  PYALLREDUCE_FN bool give_up(const HostWords& host, uint32_t peer, Phase phase, uint64_t waited_ns,
                              bool& noticed) {
    Stop why = stop_of(ld_relaxed_sys(mine().stop()), generation);
    if (why == Stop::kNone) why = stop_of(host.stop, generation);
    if (why == Stop::kNone && (host.absent >> peer & 1u) != 0) why = Stop::kAbsent;
    if (why == Stop::kNone && waited_ns > in_nanoseconds(host.deadline_ms)) why = Stop::kDeadline;
    if (why == Stop::kNone) {
      if (!noticed && waited_ns > in_nanoseconds(host.notice_ms)) {
        noticed = notice(peer, phase, waited_ns);
      }
      return false;
    }
    report(why, peer, phase, Words{{0, 0, 0, 0}}, waited_ns);
    return true;
  }

  // True for the one wait of this rank that tells the host, until it ends.
  PYALLREDUCE_FN bool notice(uint32_t peer, Phase phase, uint64_t waited_ns) {
    if (atom_exch_relaxed_gpu(mine().noticer(), 1) != 0) return false;
    Notice& notice = call.record->notice;
    notice.peer = peer;
    notice.phase = static_cast<uint32_t>(phase);
    notice.waited_ms = static_cast<uint32_t>(waited_ns / kNanosecondsPerMillisecond);
    notice.ours = signature_of(call, epoch);
    st_release_sys(&notice.serial, notice.serial + 1);
    return true;
  }
};

// The vectors that `expected` ranks sent to `mailbox(rank)[at]`; those of the others stay as they
// are. All loads of a round are in flight together.
template <int kWorld, typename Expected, typename Mailbox>
PYALLREDUCE_FN bool collect(Turn& turn, Phase phase, Words (&by_rank)[kWorld], Expected expected,
                            Mailbox mailbox) {
  uint32_t missing = 0;
#pragma unroll
  for (uint32_t rank = 0; rank < kWorld; ++rank) {
    if (expected(rank)) by_rank[rank] = ld_relaxed_sys(mailbox(rank));
  }
  const auto arrived = [&] {
    bool again = false;
#pragma unroll
    for (uint32_t rank = 0; rank < kWorld; ++rank) {
      if (expected(rank) && pending(by_rank[rank])) {
        missing = rank;
        again = true;
        by_rank[rank] = ld_relaxed_sys(mailbox(rank));
      }
    }
    return !again;
  };
  return turn.wait(missing, phase, arrived);
}

}  // namespace pyallreduce
