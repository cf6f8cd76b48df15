// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// A message, in vectors.
#pragma once

#include "protocol/call.h"
#include "protocol/memory.h"
#include "protocol/pack.h"

namespace pyallreduce {

template <typename T>
PYALLREDUCE_FN uint32_t vectors_of(uint32_t elements) {
  return (elements + kElements<T> - 1) / kElements<T>;
}

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

  PYALLREDUCE_FN Words load(uint32_t i) const { return load(i, at(i)); }
  // From at(i), made while the grid before still ran.
  PYALLREDUCE_FN Words load(uint32_t i, const Words* source) const {
    if (!kReadsOn && i == short_) return load_part<T>(source, count_);
    return ld_weak(source);
  }
  PYALLREDUCE_FN const Words* at(uint32_t i) const { return in_ + i; }
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
