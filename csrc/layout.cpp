// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "layout.h"

#include <algorithm>
#include <stdexcept>

namespace pyallreduce {
namespace {

constexpr uint64_t kVector = sizeof(Words);
constexpr uint64_t kPage = 4096;
constexpr uint32_t kTileUnit = 8;  // vectors: whole 128-byte lines
// One-shot's part of the slab is a third at most.
constexpr uint64_t kOneShotShare = 3;
// How far apart the slabs of neighbouring ranks begin, and how much of a slab all that may take.
constexpr uint64_t kApart = 1056 << 10;
constexpr uint64_t kApartShare = 4;

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Two ranks have one peer each, with whose link nothing else competes.
uint64_t apart_for(uint32_t world, uint64_t slab_bytes) {
  const bool fits = (world - 1) * kApart <= slab_bytes / kApartShare;
  return world > 2 && fits ? kApart : 0;
}

// What one-shot is used for in one launch, in each slot. Among two ranks that is 8 MiB, and 6 MiB
// in 86 blocks, where all 128 have room for as much each; among more it is less than this.
uint64_t one_shot_bytes_for(uint32_t world) {
  return uint64_t{kSlots} * (world == 2 ? 9 << 20 : 4 << 20);
}

uint32_t tile_for(uint64_t bytes, uint64_t mailboxes) {
  const uint64_t most = bytes / (mailboxes * kVector);
  const uint64_t unit = most < kPiece ? kTileUnit : kPiece;
  return static_cast<uint32_t>(most / unit * unit);
}

}  // namespace

Layout make_layout(uint32_t world, uint64_t slab_bytes) {
  if (world < 2 || world > kMaxRanks) {
    throw std::invalid_argument("world size " + std::to_string(world) + " is not one of 2 to 8");
  }
  Layout layout{};
  layout.world = world;
  layout.apart = static_cast<uint32_t>(apart_for(world, slab_bytes));
  layout.control = kHeaderBytes;
  layout.blocks = layout.control + 128;
  const uint64_t blocks_end = layout.blocks + 2 * kMaxBlocks * sizeof(BlockWord);
  layout.signatures = round_up(blocks_end, kPage);
  layout.probes = layout.signatures + uint64_t{kMaxBlocks} * kSlots * kMaxRanks * kVector;
  layout.one_shot = layout.probes + uint64_t{kSlots} * kMaxRanks * kVector;

  const uint64_t mailboxes = uint64_t{kMaxBlocks} * kSlots * (world - 1);
  const uint64_t before = layout.one_shot + room_apart(layout);
  const uint64_t left = slab_bytes > before ? slab_bytes - before : 0;
  layout.one_shot_tile =
      tile_for(std::min(one_shot_bytes_for(world), left / kOneShotShare), mailboxes);
  const uint64_t one_shot_bytes = mailboxes * layout.one_shot_tile * kVector;
  layout.two_shot = layout.one_shot + one_shot_bytes;
  layout.two_shot_tile = tile_for(left - one_shot_bytes, mailboxes * kShots);
  layout.bytes = layout.two_shot + mailboxes * kShots * layout.two_shot_tile * kVector;
  if (layout.one_shot_tile == 0 || layout.two_shot_tile == 0) {
    const uint64_t least = layout.one_shot + mailboxes * kTileUnit * kVector * kOneShotShare;
    throw std::invalid_argument("a slab of " + std::to_string(slab_bytes) +
                                " bytes is too small for " + std::to_string(world) +
                                " ranks: at least " + std::to_string(least));
  }
  return layout;
}

uint64_t one_shot_capacity(const Layout& layout, uint32_t blocks) {
  return uint64_t{blocks} * layout.one_shot_tile * kVector;
}

uint64_t two_shot_capacity(const Layout& layout, uint32_t blocks) {
  return uint64_t{blocks} * layout.two_shot_tile * kVector * layout.world;
}

std::vector<Region> regions(const Layout& layout) {
  return {
      {"header", 0, kHeaderBytes, false},
      {"control", layout.control, layout.blocks - layout.control, false},
      {"blocks", layout.blocks, layout.signatures - layout.blocks, false},
      {"signatures", layout.signatures, layout.probes - layout.signatures, true},
      {"probes", layout.probes, layout.one_shot - layout.probes, true},
      {"one-shot mailboxes", layout.one_shot, layout.two_shot - layout.one_shot, true},
      {"two-shot mailboxes", layout.two_shot, layout.bytes - layout.two_shot, true},
  };
}

}  // namespace pyallreduce
