// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// A thread a rank that learns of a peer's death, and of long waits, without the GIL and without
// CUDA: both may be stuck when they are needed.
//
// A death is told by a robust mutex in the dead rank's page, which its watchdog held: the kernel
// marks it early in the end of the process, before a driver's work. A pidfd is the second source.
// The first watchdog that finds out says so in the page.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace pyallreduce::host {

struct Peer {
  uint32_t rank;
  int64_t pid;
  uint64_t page;  // its record page, mapped here
};

class Watchdog {
 public:
  // `page`: this rank's record page. On return the thread holds this rank's life lock.
  Watchdog(uint32_t rank, uint64_t page);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // From here on that peer's death raises this rank's host stop, and its orderly close() its bit of
  // `absent`. Its page stays mapped until close().
  void watch(const Peer& peer);
  // Whether a peer has died; never waits. Acquire pairs with bury()'s release, but what is known of
  // the dead is read under the lock alone, by ended().
  bool any_ended() const { return buried_.load(std::memory_order_acquire); }
  // (-1, "") while no peer has died; else the first that did, and a sentence, "rank 1 (...) ...".
  // Waits until how it died is known, or until 50 ms after this watchdog learned of the death.
  std::pair<int, std::string> ended() const;
  // Lets go of the life lock: this rank leaves in good order. Within a second of a death it may
  // first wait for how, which the log is to tell. Does nothing the second time, nor in a forked
  // child, which has no such thread. Several threads may call it: the life lock is let go of when
  // it returns.
  void close();

 private:
  struct Watched {
    Peer peer;
    int pidfd;
    uint64_t start_time;
    bool left;
    int refusals;  // of its lock behind its process's end, in looks one behind the other
  };

  void run();
  void look();
  void look_at(Watched& watched);
  void raise_stop();
  void bury(const Watched& watched);
  void find_out_how();
  void finish();
  void say(const std::string& text);
  void say_what_is_unsaid();
  std::string the_dead() const;
  std::string sentence() const;
  void log_notice();

  uint32_t rank_;
  uint64_t page_;
  int64_t pid_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> closing_{false};
  mutable std::mutex mutex_;
  std::vector<Watched> watched_;
  std::optional<Watched> dead_;
  std::atomic<bool> buried_{false};  // dead_ is set
  std::chrono::steady_clock::time_point told_by_;
  std::string launched_;  // " after it had launched ..."
  std::string how_;       // empty until it is known, or given up
  bool told_ = false;     // a line in the log says that a peer has died
  uint32_t notices_ = 0;
  std::deque<std::string> unsaid_;  // the thread's own
  std::mutex closes_;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace pyallreduce::host
