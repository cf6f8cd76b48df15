// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// What a block has of a message, and the order in which its lanes go through it.
#pragma once

#include "protocol/call.h"
#include "protocol/memory.h"
#include "protocol/pack.h"

namespace pyallreduce {

template <typename T>
PYALLREDUCE_FN uint32_t vectors_of(uint32_t elements) {
  return (elements + kElements<T> - 1) / kElements<T>;
}

// A block's vectors [first, first + count) of `vectors`, `tile` to each block. A step is one vector
// a lane.
struct Share {
  uint32_t first;
  uint32_t count;

  PYALLREDUCE_FN Share(uint32_t tile, uint32_t block, uint32_t vectors)
      : first(block * tile), count(first < vectors ? min_of(tile, vectors - first) : 0) {}

  // Whether any lane has a vector in this step. (Not by a number of steps: a division at the end of
  // a call is part of its time.)
  PYALLREDUCE_FN bool has(uint32_t step, uint32_t lanes) const { return step * lanes < count; }

  // `use(lane, i)` for each vector i of a step that this block has.
  template <typename Block, typename Use>
  PYALLREDUCE_FN void each(const Block& block, uint32_t step, Use use) const {
    block.data([&](uint32_t lane) {
      const uint32_t i = step * block.lanes + lane;
      if (i < count) use(lane, i);
    });
  }
};

// A step of a block's way through a message of several laps, in each of which it has `tile`
// vectors.
struct Step {
  uint32_t lap = 0;
  uint32_t done = 0;  // vectors of the lap

  PYALLREDUCE_FN bool last(const Call& call, uint32_t lanes) const {
    return done + lanes >= call.tile;
  }
  PYALLREDUCE_FN void advance(const Call& call, uint32_t lanes) {
    const bool over = last(call, lanes);
    done = over ? 0 : done + lanes;
    lap += over ? 1 : 0;
  }
};

// A rank's input and output from vector `first` on. The last vector of a message may hold fewer
// elements than fit.
template <typename T>
class Message {
 public:
  PYALLREDUCE_FN Message(const Call& call, uint32_t first)
      : in_(pinned(static_cast<const Words*>(call.in) + first)),
        out_(pinned(static_cast<Words*>(call.out) + first)),
        short_(call.elements / kElements<T> - first),
        count_(call.elements % kElements<T>) {}

  PYALLREDUCE_FN Words load(uint32_t i) const {
    if (!kReadsOn && i == short_) return load_part<T>(in_ + i, count_);
    return ld_weak(in_ + i);
  }
  PYALLREDUCE_FN void store(uint32_t i, const Words& v) const {
    if (__builtin_expect(i == short_, 0)) {
      store_part<T>(out_ + i, count_, v);
    } else {
      st_weak(out_ + i, v);
    }
  }

  // For grid_dependency_wait.
  PYALLREDUCE_FN uint64_t bits() const {
    return reinterpret_cast<uint64_t>(in_) | reinterpret_cast<uint64_t>(out_) | short_;
  }

 private:
  const Words* in_;
  Words* out_;
  uint32_t short_;  // the vector, counted from `first`, that holds `count_` elements; none if 0
  uint32_t count_;
};

}  // namespace pyallreduce
