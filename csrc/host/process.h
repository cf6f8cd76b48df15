// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace pyallreduce::host {

// From /proc/<pid>/stat.
struct ProcessFacts {
  char state;           // 'Z': it has ended, and its parent has not asked how
  uint64_t start_time;  // in clock ticks since boot: pids are used again
  int exit_status;      // as waitpid gives it, once `state` is 'Z'
};

// None where the process is gone, or hidden from this one. Throws nothing of its own: the
// watchdog's thread asks, about processes that go meanwhile.
std::optional<ProcessFacts> process_facts(int64_t pid);

// Whether the process that began at `start_time` is no more, or can't be seen.
bool is_over(int64_t pid, uint64_t start_time);

inline constexpr const char* kUnknownEnd = "how is not known";

// How a process that is ending ends: "SIGKILL", "exit status 1", or kUnknownEnd. `pidfd`:
// of it, or -1; with one an answer can be had when its parent has been quicker to ask.
std::string how_it_ended(int64_t pid, int pidfd);

}  // namespace pyallreduce::host
