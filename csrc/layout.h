// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// How the bytes of a slab are shared out. The same arguments give the same layout on every rank.
#pragma once

#include <string>
#include <vector>

#include "protocol/slab.h"

namespace pyallreduce {

// A rank's slab begins `apart` bytes times its rank into its allocation: of `slab_bytes`, room
// for the last rank is left. A rank sends to the same place in all its peers' slabs, and ranks that
// do alike allocate at alike addresses: links are chosen by address, and what goes to all peers at
// once would crowd on some of them (bench/NOTES.md, entry 31).
//
// Throws std::invalid_argument when `world` is not 2 to 8 or `slab_bytes` holds no mailbox.
Layout make_layout(uint32_t world, uint64_t slab_bytes);

// What is in front of the last rank's slab: no rank has more.
inline uint64_t room_apart(const Layout& layout) {
  return uint64_t{layout.world - 1} * layout.apart;
}

// The largest message, in bytes, that goes through the mailboxes of `blocks` blocks at once.
uint64_t one_shot_capacity(const Layout& layout, uint32_t blocks);
uint64_t two_shot_capacity(const Layout& layout, uint32_t blocks);

struct Region {
  std::string name;
  uint64_t offset;
  uint64_t bytes;
  bool armed;  // filled with the sentinel when a generation begins (the others with zeros)
};
std::vector<Region> regions(const Layout& layout);

}  // namespace pyallreduce
