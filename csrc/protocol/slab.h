// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Who owns which bytes. A rank's slab is all that its peers can reach; its record is one page that
// every rank can read. docs/design.md prints the budget.
//
// * control: {stop, generation}, {reporter, noticer}; peers write `stop`, the rest is the owner's
// * blocks: all blocks' epochs, then all owner words; the owner's alone
// * signatures: [slot][block][how far the sender is behind the owner], one vector each, shared by
//   all algorithms
// * probes: [slot][sender], one vector each, for the ping-pong of start-up
// * one_shot: [slot][sender][piece][block][vector of the piece]
// * two_shot: [slot][shot][sender][piece][block][vector of the piece]
//
// The pieces lie so that the mailboxes in use lie together however short the message.
//
// Every mailbox has one writer (its sender) and one reader (the slab's owner), and a block's
// mailboxes have one fixed place for every call shape: a peer that is one call ahead can only write
// where the same block of this rank reads.
#pragma once

#include "protocol/target.h"

namespace pyallreduce {

// Raised with every change of the slab's layout or of what the kernels say to each other.
constexpr uint32_t kProtocolVersion = 8;
// Vectors of a block that lie together in a mailbox.
constexpr uint32_t kPiece = 64;
// Magic, nonce, rank: written by the owner, read once at start-up.
constexpr uint32_t kHeaderBytes = 128;
// Of two-shot: shards, then results.
constexpr uint32_t kShots = 2;

// The control line. Its first vector is read whole at the start of a call.
struct alignas(16) Control {
  uint32_t stop;  // a stop word; 0 means none
  uint32_t generation;
  uint32_t unused[2];
  uint32_t reporter;  // the last generation whose first failure has claimed the record
  uint32_t noticer;   // 1 while a wait of this rank is the one that the record's notice tells of
  uint32_t unused_too[2];
};
static_assert(sizeof(Control) == 2 * sizeof(Words));

// A block's epoch: calls in which it took part, in this generation; a lap counts as one. Or its
// owner word: 1 while a call runs in it, so that a second one is refused. They lie apart: the next
// call would wait for its epoch while this call's last store to the same line is under way
// (bench/NOTES.md, entry 38).
struct alignas(16) BlockWord {
  uint32_t value;
  uint32_t unused[3];
};

// Why a wait ended without an arrival. Zero is "it has not".
enum class Stop : uint32_t {
  kNone = 0,
  kDeadline = 1,  // this rank waited for a peer until its deadline
  kPeer = 2,      // a peer raised the stop word of this slab
  kHost = 3,      // the host raised the stop word of the record
  kMismatch = 4,  // a peer's signature differs from ours
  kRefused = 5,   // a peer refused the call
  kOverlap = 6,   // two calls of this rank ran at once
  kAbsent = 7,    // a peer has closed its communicator, and its part of the call is not here
};

// A stop word carries the generation that it stops, so that a late one of an older generation is
// inert.
PYALLREDUCE_BOTH_FN uint32_t stop_word(uint32_t generation, Stop why) {
  return generation << 8 | static_cast<uint32_t>(why);
}
PYALLREDUCE_BOTH_FN Stop stop_of(uint32_t word, uint32_t generation) {
  return word >> 8 == (generation & 0xffffffu) ? static_cast<Stop>(word & 0xffu) : Stop::kNone;
}

enum class Phase : uint32_t { kNone = 0, kSignature = 1, kShards = 2, kResults = 3 };

// A wait that has become long. The watchdog logs each new serial.
struct Notice {
  uint32_t serial;  // written last
  uint32_t peer;
  uint32_t phase;
  uint32_t waited_ms;
  Words ours;  // signature
};

enum class EdgeState : uint32_t { kUntried = 0, kSound = 1, kSilent = 2, kCorrupt = 3 };

// What the ping-pong with one peer found.
struct Edge {
  uint32_t state;        // EdgeState, written last
  uint32_t rounds;       // that arrived here
  uint64_t nanoseconds;  // of all rounds
  uint64_t read_back;    // 1: this rank's last write stands in the peer's memory, as seen from here
};

// What a long wait looks at. The host may change it at any time, under running kernels and captured
// graphs.
struct alignas(16) HostWords {
  uint32_t stop;         // a stop word
  uint32_t absent;       // bit r: rank r has closed, after all that it sent was performed
  uint32_t deadline_ms;  // a wait ends with an abort
  uint32_t notice_ms;    // a wait is noticed
};
static_assert(sizeof(HostWords) == sizeof(Words));

// At the start of a page of host memory a rank, registered with CUDA by its owner and mapped by
// every rank.
struct Record {
  HostWords host;
  uint32_t state;       // a stop word: written last, by the first failure of a generation
  uint32_t generation;  // the host's copy of the control line's
  uint32_t launched;    // calls that this rank launched (a graph's replays are not seen)
  uint32_t drained;     // calls that returned at once, their generation being over
  uint32_t block;
  uint32_t peer;
  uint32_t phase;      // Phase
  uint32_t algorithm;  // Algorithm
  uint32_t epoch;
  uint32_t waited_ms;
  Words ours;  // signatures
  Words theirs;
  Notice notice;
  Edge edges[kMaxRanks];  // by peer
};

// Sizes that every rank must agree on. A tile is a block's share of one sender's vectors.
struct Layout {
  uint32_t world;
  uint32_t one_shot_tile;
  uint32_t two_shot_tile;
  uint32_t apart;  // bytes: where layout.h says
  uint64_t control;
  uint64_t blocks;
  uint64_t signatures;
  uint64_t probes;
  uint64_t one_shot;
  uint64_t two_shot;
  uint64_t bytes;
};

// One rank's slab as seen from any rank that has it mapped.
struct Slab {
  char* base;
  const Layout* layout;

  PYALLREDUCE_BOTH_FN Control* control() const {
    return reinterpret_cast<Control*>(base + layout->control);
  }
  PYALLREDUCE_BOTH_FN BlockWord* epoch(uint32_t block) const {
    return reinterpret_cast<BlockWord*>(base + layout->blocks) + block;
  }
  PYALLREDUCE_FN BlockWord* owner_word(uint32_t block) const { return owner_behind(epoch(block)); }
  PYALLREDUCE_FN static BlockWord* owner_behind(BlockWord* epoch) { return epoch + kMaxBlocks; }
  PYALLREDUCE_FN Words* probe(uint32_t slot, uint32_t sender) const {
    return reinterpret_cast<Words*>(base + layout->probes) + (slot * kMaxRanks + sender);
  }
  // Block 0's mailbox in slot 0, and of two-shot's first shot; signature.h and mailboxes.h know how
  // far the others are.
  PYALLREDUCE_BOTH_FN Words* signatures(uint32_t hop) const {
    return reinterpret_cast<Words*>(base + layout->signatures) + hop;
  }
  // Nobody sends to himself: the senders of data are numbered as the owner's peers.
  PYALLREDUCE_BOTH_FN Words* one_shot(uint32_t peer) const {
    return mailbox(layout->one_shot, layout->one_shot_tile, peer);
  }
  PYALLREDUCE_BOTH_FN Words* two_shot(uint32_t peer) const {
    return mailbox(layout->two_shot, layout->two_shot_tile, peer);
  }
  // How far a block's mailbox of `tile` vectors is from block 0's.
  PYALLREDUCE_FN static uint32_t apart(uint32_t tile, uint32_t block) {
    return block * min_of(tile, kPiece);
  }
  // How far the i-th vector of a mailbox is from its start.
  PYALLREDUCE_FN static uint32_t spread(uint32_t i) {
    return i + i / kPiece * (kPiece * (kMaxBlocks - 1));
  }

 private:
  PYALLREDUCE_BOTH_FN Words* mailbox(uint64_t offset, uint32_t tile, uint32_t peer) const {
    return reinterpret_cast<Words*>(base + offset) + peer * kMaxBlocks * tile;
  }
};

}  // namespace pyallreduce
