// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "host/watchdog.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <exception>
#include <system_error>

#include "host/descriptor.h"
#include "host/process.h"
#include "rank.h"

namespace pyallreduce::host {
namespace {

constexpr int kLookMilliseconds = 10;
// So often in a row the lock of a process that has ended must refuse itself. Once may be another
// watchdog that asks just now, and has not let go yet.
constexpr int kRefusals = 3;
constexpr std::chrono::milliseconds kExplanation{50};  // of the 100 in which a death is to be told
// A line of its own in the log may come later: a large process takes its time over its end.
constexpr std::chrono::milliseconds kPatience{1000};
constexpr uint64_t kLifeOffset = 1024;  // of the life in the page, behind the record
static_assert(sizeof(Record) <= kLifeOffset);

// What a page says of its rank's process.
struct Life {
  pthread_mutex_t lock;  // robust; the rank's watchdog holds it while the process lives
  // Whoever finds the lock of a dead process says so here. The lock alone would tell two: the
  // first lets go of it unrepaired, and glibc's pthread_mutex_trylock, which tells the second that
  // it is not recoverable, leaves it locked. Relaxed: nothing that the dead rank wrote is read by
  // it.
  uint32_t over;
};

Record& record_of(uint64_t page) { return *reinterpret_cast<Record*>(page); }
Life& life_of(uint64_t page) { return *reinterpret_cast<Life*>(page + kLifeOffset); }

void check(int error, const char* what) {
  if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

void make_life_lock(pthread_mutex_t* lock) {
  pthread_mutexattr_t attributes;
  check(pthread_mutexattr_init(&attributes), "the life lock");
  check(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED), "sharing the life lock");
  check(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST), "a robust life lock");
  check(pthread_mutex_init(lock, &attributes), "the life lock");
  pthread_mutexattr_destroy(&attributes);
}

// Whether standard error takes a line now, or never will: a pipe that nobody empties must not stop
// the watch.
bool takes_a_line() {
  pollfd one{STDERR_FILENO, POLLOUT, 0};
  return ::poll(&one, 1, 0) != 0;
}

// Signals are for the program's own threads.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

const char* phase_name(uint32_t phase) {
  switch (static_cast<Phase>(phase)) {
    case Phase::kNone:
      return "start";
    case Phase::kSignature:
      return "signature";
    case Phase::kShards:
      return "shards";
    case Phase::kResults:
      return "results";
  }
  return "?";
}

}  // namespace

Watchdog::Watchdog(uint32_t rank, uint64_t page) : rank_(rank), page_(page), pid_(::getpid()) {
  make_life_lock(&life_of(page_).lock);
  life_of(page_).over = 0;
  const SignalsBlocked blocked;  // the new thread inherits it
  thread_ = std::make_unique<std::thread>([this] { run(); });
  while (!ready_.load(std::memory_order_acquire)) std::this_thread::yield();
}

Watchdog::~Watchdog() { close(); }

void Watchdog::watch(const Peer& peer) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto facts = process_facts(peer.pid);
  watched_.push_back(Watched{peer, open_pidfd(peer.pid), facts ? facts->start_time : 0, false, 0});
}

// Asks again and again: a condition variable with a waiter could not be destroyed in a forked
// child.
std::pair<int, std::string> Watchdog::ended() const {
  for (;;) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (!dead_) return {-1, ""};
      if (!how_.empty() || std::chrono::steady_clock::now() >= told_by_) {
        return {static_cast<int>(dead_->peer.rank), sentence()};
      }
    }
    ::poll(nullptr, 0, 1);
  }
}

void Watchdog::close() {
  if (::getpid() != pid_) {
    // Its thread is the parent's, and glibc has given its stack to this process's own threads.
    [[maybe_unused]] std::thread* const not_here = thread_.release();
    return;
  }
  const std::lock_guard<std::mutex> guard(closes_);
  if (!thread_) return;
  closing_.store(true);
  thread_->join();
  thread_.reset();
  for (const Watched& watched : watched_) close_pidfd(watched.pidfd);
  watched_.clear();
}

// The life lock belongs to this thread, which lives as long as the process or until close(). What a
// look throws, for want of memory, must not end the process: the next one comes soon.
void Watchdog::run() {
  pthread_mutex_lock(&life_of(page_).lock);
  ready_.store(true, std::memory_order_release);
  while (!closing_.load()) {
    ::poll(nullptr, 0, kLookMilliseconds);
    try {
      look();
    } catch (const std::exception&) {
    }
  }
  try {
    finish();
  } catch (const std::exception&) {
  }
  pthread_mutex_unlock(&life_of(page_).lock);
}

void Watchdog::look() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (Watched& watched : watched_) look_at(watched);
    if (dead_) raise_stop();  // again and again: a new generation does not raise the dead
    log_notice();
  }
  if (dead_ && how_.empty()) find_out_how();  // no other thread writes either
  say_what_is_unsaid();
}

void Watchdog::finish() {
  while (dead_ && how_.empty()) {
    find_out_how();
    say_what_is_unsaid();
  }
}

void Watchdog::look_at(Watched& watched) {
  // The first death is the one that explains the rest; who left in good order may end as he likes.
  if (dead_ || watched.left) return;
  Life& life = life_of(watched.peer.page);
  if (__atomic_load_n(&life.over, __ATOMIC_RELAXED) != 0) {
    bury(watched);
    return;
  }
  const int answer = pthread_mutex_trylock(&life.lock);
  // A process that has ended holds nothing. Asked of /proc too: the pidfd's number may be another
  // process's by now.
  const bool refused =
      answer == EBUSY && has_ended(watched.pidfd) && is_over(watched.peer.pid, watched.start_time);
  watched.refusals = refused ? watched.refusals + 1 : 0;
  if (answer == 0) {
    pthread_mutex_unlock(&life.lock);
    watched.left = true;
    // Release: behind the lock's acquire, so that all that the peer sent is performed before a
    // kernel reads this.
    __atomic_fetch_or(&record_of(page_).host.absent, 1u << watched.peer.rank, __ATOMIC_RELEASE);
  } else if (answer != EBUSY || watched.refusals >= kRefusals) {
    __atomic_store_n(&life.over, 1, __ATOMIC_RELAXED);
    if (answer == EOWNERDEAD) pthread_mutex_unlock(&life.lock);
    bury(watched);
  }
}

void Watchdog::raise_stop() {
  Record& record = record_of(page_);
  const uint32_t generation = __atomic_load_n(&record.generation, __ATOMIC_RELAXED);
  __atomic_store_n(&record.host.stop, stop_word(generation, Stop::kHost), __ATOMIC_RELEASE);
}

void Watchdog::bury(const Watched& watched) {
  raise_stop();
  dead_ = watched;
  // Before what follows, which may throw. The caller holds the lock that ended() takes.
  buried_.store(true, std::memory_order_release);
  told_by_ = std::chrono::steady_clock::now() + kExplanation;
  const auto launched = [](uint64_t page) {
    return std::to_string(__atomic_load_n(&record_of(page).launched, __ATOMIC_RELAXED));
  };
  launched_ = " after it had launched " + launched(watched.peer.page) + " calls; rank " +
              std::to_string(rank_) + " had launched " + launched(page_) +
              " (replays of graphs not counted)";
}

// Without the lock: the end of the process takes its time. The first line does not wait for all of
// it, since what watches over these processes may end this one within a second.
void Watchdog::find_out_how() {
  const std::string how = how_it_ended(dead_->peer.pid, dead_->pidfd);
  const bool known = how != kUnknownEnd;
  const std::lock_guard<std::mutex> guard(mutex_);
  if (known || std::chrono::steady_clock::now() >= told_by_ + kPatience) how_ = how;
  if (!told_) {
    say("rank " + std::to_string(rank_) + ": " + sentence() + ". Its all-reduces end now.");
  } else if (known) {
    say("rank " + std::to_string(rank_) + ": how " + the_dead() + " died is known now: " + how +
        ".");
  }
  told_ = true;
}

void Watchdog::say(const std::string& text) { unsaid_.push_back("pyallreduce: " + text + "\n"); }

// One write a line, so that those of several ranks do not mix. The GIL may be held by a stuck
// thread: Python's logging is not for here.
void Watchdog::say_what_is_unsaid() {
  while (!unsaid_.empty() && takes_a_line()) {
    const std::string& line = unsaid_.front();
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
    unsaid_.pop_front();
  }
}

std::string Watchdog::the_dead() const {
  return "rank " + std::to_string(dead_->peer.rank) + " (process " +
         std::to_string(dead_->peer.pid) + ")";
}

std::string Watchdog::sentence() const {
  return the_dead() + " died (" + (how_.empty() ? kUnknownEnd : how_) + ")" + launched_;
}

void Watchdog::log_notice() {
  const Notice& notice = record_of(page_).notice;
  const uint32_t serial = __atomic_load_n(&notice.serial, __ATOMIC_ACQUIRE);
  if (serial == notices_) return;
  notices_ = serial;
  if (serial == 0) return;  // a new generation
  const uint32_t deadline_ms =
      __atomic_load_n(&record_of(page_).host.deadline_ms, __ATOMIC_RELAXED);
  char text[256];
  std::snprintf(text, sizeof text,
                "rank %u has waited %.1f s for rank %u in call %u (%s, %llu bytes); it gives up "
                "after %.1f s.",
                rank_, notice.waited_ms / 1e3, notice.peer, notice.ours.w[0],
                phase_name(notice.phase), static_cast<unsigned long long>(notice.ours.w[1]) * 16,
                deadline_ms / 1e3);
  say(text);
}

}  // namespace pyallreduce::host
