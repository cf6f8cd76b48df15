// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "host/process.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <sstream>
#include <thread>
#include <vector>

namespace pyallreduce::host {
namespace {

constexpr int kStateField = 3;  // proc(5)
constexpr int kStartField = 22;
constexpr int kExitField = 52;
constexpr int kAttempts = 50;  // a driver may take its time over the end of a process

// ioctl_pidfd(2), since Linux 6.15; the headers at hand may be older.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup;
  uint32_t ids[11];
  int32_t exit_code;
};
constexpr uint64_t kPidfdInfoExit = 1u << 3;
constexpr unsigned long kPidfdGetInfo = _IOWR(0xff, 11, PidfdInfo);

// Empty where there is none. Not by a stream: that throws if the process's parent asks how it ended
// between the opening and the reading, and the watchdog's thread would end its own process by it.
std::string contents_of(const std::string& path) {
  std::string text;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return text;
  char part[1024];
  for (ssize_t got; (got = ::read(fd, part, sizeof part)) > 0;) text.append(part, got);
  ::close(fd);
  return text;
}

// As waitpid gives it, of a process that its parent has asked for already.
std::optional<int> exit_status_of(int pidfd) {
  PidfdInfo info{kPidfdInfoExit, 0, {}, 0};
  if (pidfd < 0 || ::ioctl(pidfd, kPidfdGetInfo, &info) != 0) return std::nullopt;
  if ((info.mask & kPidfdInfoExit) == 0) return std::nullopt;
  return info.exit_code;
}

std::string describe(int status) {
  if (!WIFSIGNALED(status)) return "exit status " + std::to_string(WEXITSTATUS(status));
  const char* name = sigabbrev_np(WTERMSIG(status));
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(WTERMSIG(status));
}

}  // namespace

std::optional<ProcessFacts> process_facts(int64_t pid) {
  const std::string text = contents_of("/proc/" + std::to_string(pid) + "/stat");
  const size_t bracket = text.rfind(')');  // the command in field 2 may hold spaces and brackets
  if (bracket == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(bracket + 1));
  std::vector<std::string> field{std::istream_iterator<std::string>(fields), {}};
  if (field.size() <= kStartField - kStateField) return std::nullopt;
  const size_t exit = kExitField - kStateField;
  return ProcessFacts{field[0][0],
                      std::strtoull(field[kStartField - kStateField].c_str(), nullptr, 10),
                      field.size() > exit ? std::atoi(field[exit].c_str()) : 0};
}

bool is_over(int64_t pid, uint64_t start_time) {
  const auto facts = process_facts(pid);
  return !facts || facts->state == 'Z' || facts->start_time != start_time;
}

std::string how_it_ended(int64_t pid, int pidfd) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto facts = process_facts(pid);
    if (facts && facts->state == 'Z') return describe(facts->exit_status);
    if (const auto status = exit_status_of(pidfd)) return describe(*status);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return kUnknownEnd;
}

}  // namespace pyallreduce::host
