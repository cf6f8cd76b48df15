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
PYALLREDUCE_FN uint32_t milliseconds(uint64_t nanoseconds) {
  return static_cast<uint32_t>(nanoseconds / kNanosecondsPerMillisecond);
}

// One block's view of one call, as one of its lanes sees it: what every wait needs.
struct Turn {
  const Call& call;
  uint32_t block;
  BlockWord* epoch_word;
  Control* control;
  uint32_t epoch = 0;
  uint32_t slot = 0;
  uint32_t generation = 0;
  Stop stop = Stop::kNone;  // kNone while all is well
  // What this lane has to report when the block leaves the call. Not at once: the code of a report
  // in each wait would make every kernel several times as long.
  bool failed = false;
  Phase phase = Phase::kNone;
  uint32_t peer = 0;
  uint32_t waited_ms = 0;

  PYALLREDUCE_FN Turn(const Call& c, uint32_t b)
      : call(c), block(b), epoch_word(pinned(c.epochs + b)), control(pinned(c.control)) {}

  // Behind grid_dependency_wait: the grid before has advanced the epoch.
  PYALLREDUCE_FN void begin() {
    epoch = ld_relaxed_sys(&epoch_word->value);
    slot = epoch % kSlots;
    const Words words = ld_relaxed_sys(reinterpret_cast<const Words*>(control));
    generation = words.w[1];
    stop = stop_of(words.w[0], generation);  // sticky: later calls drain at once
  }

  // For grid_dependency_wait; never all zero in the low half, as no control line begins a page.
  PYALLREDUCE_FN uint64_t bits() const {
    return reinterpret_cast<uint64_t>(epoch_word) | reinterpret_cast<uint64_t>(control);
  }

  PYALLREDUCE_FN uint32_t* owner_word() const { return &Slab::owner_behind(epoch_word)->value; }

  // Laps are calls of their own to the mailboxes.
  PYALLREDUCE_FN uint32_t slot_of(uint32_t lap) const { return (slot + lap) % kSlots; }

  PYALLREDUCE_FN bool ok() const { return stop == Stop::kNone; }
  PYALLREDUCE_FN void fail(Stop why, uint32_t peer_, Phase phase_, uint32_t waited_ms_) {
    stop = why;
    failed = true;
    peer = peer_;
    phase = phase_;
    waited_ms = waited_ms_;
  }
  // Another lane of this block has failed, and reports it.
  PYALLREDUCE_FN void join() {
    if (ok()) stop = Stop::kPeer;
  }

  // The first failure of a generation writes the record; the state word is released last.
  PYALLREDUCE_FN void report(const Words& theirs) {
    failed = false;
    if (atom_exch_relaxed_gpu(&control->reporter, generation) == generation) return;
    Record* record = call.record;
    record->block = block;
    // Of two calls at once no peer is guilty, whoever this lane was waiting for when it heard.
    const bool alone = stop == Stop::kOverlap;
    record->peer = alone ? call.rank : peer;
    record->phase = static_cast<uint32_t>(alone ? Phase::kNone : phase);
    record->algorithm = static_cast<uint32_t>(decode_shape(call.shape).algorithm);
    record->epoch = epoch;
    record->waited_ms = waited_ms;
    record->ours = signature_of(call, epoch);  // of the first lap
    record->theirs = theirs;
    st_release_sys(&record->state, stop_word(generation, stop));
    if (stop == Stop::kPeer) return;  // that peer has told everybody
#pragma unroll 1
    for (uint32_t rank = 0; rank < call.layout.world; ++rank) {
      const Stop seen_there = rank == call.rank ? stop : Stop::kPeer;
      st_relaxed_sys(&call.slab(rank).control()->stop, stop_word(generation, seen_there));
    }
  }

  // Polls `arrived` until it says yes (true) or the wait has to end (false, and `stop` says why).
  // `arrived` answers from what it read when it was asked before, and reads again; `missing` says
  // from what it read last which peer has not arrived: this rank itself, if all have.
  template <typename Missing, typename Arrived>
  PYALLREDUCE_FN bool wait(Missing missing, Phase during, Arrived arrived) {
    if (!ok()) return false;
    uint64_t since = 0;
    bool noticed = false;
    for (uint32_t polls = 1; !arrived(); ++polls) {
      pause_after(polls);
      if (__builtin_expect(polls % kPollsPerLook != 0, 1)) continue;
      const uint64_t now = nanoseconds();
      if (since == 0) {
        since = now;
        continue;
      }
      const HostWords host = host_words();
      // Asked again behind clock and host: this process may have been stopped between poll and
      // clock; and what a peer sent before the host heard that it is absent is here by now (the
      // host's word is acquired, and was written after the peer's last grid had ended).
      // The first answer is about what was read before the look; what was read last, `missing`
      // judges.
      bool here = false;
#pragma unroll 1
      for (int ask = 0; ask < 2 && !here; ++ask) here = arrived();
      const uint32_t from = missing();
      if (here || from == call.rank) break;
      const Stop why = reason_to_stop(host, from, now - since);
      if (why != Stop::kNone) {
        fail(why, from, during, milliseconds(now - since));
        return false;
      }
      if (!noticed && now - since > in_nanoseconds(host.notice_ms)) {
        noticed = notice(from, during, milliseconds(now - since));
      }
    }
    if (__builtin_expect(noticed, 0)) st_relaxed_sys(&control->noticer, 0);
    return true;
  }

 private:
  PYALLREDUCE_FN HostWords host_words() const {
    const Words v = ld_acquire_sys(reinterpret_cast<const Words*>(&call.record->host));
    return HostWords{v.w[0], v.w[1], v.w[2], v.w[3]};
  }

  PYALLREDUCE_FN Stop reason_to_stop(const HostWords& host, uint32_t from,
                                     uint64_t waited_ns) const {
    Stop why = stop_of(ld_relaxed_sys(&control->stop), generation);
    if (why == Stop::kNone) why = stop_of(host.stop, generation);
    if (why == Stop::kNone && (host.absent >> from & 1u) != 0) why = Stop::kAbsent;
    if (why == Stop::kNone && waited_ns > in_nanoseconds(host.deadline_ms)) why = Stop::kDeadline;
    return why;
  }

  // True for the one wait of this rank that tells the host, until it ends.
  PYALLREDUCE_FN bool notice(uint32_t from, Phase during, uint32_t so_far_ms) {
    if (atom_exch_relaxed_gpu(&control->noticer, 1) != 0) return false;
    Notice& notice = call.record->notice;
    notice.peer = from;
    notice.phase = static_cast<uint32_t>(during);
    notice.waited_ms = so_far_ms;
    notice.ours = signature_of(call, epoch);
    st_release_sys(&notice.serial, notice.serial + 1);
    return true;
  }
};

}  // namespace pyallreduce
