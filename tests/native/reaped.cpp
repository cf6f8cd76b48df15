// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// Asks about processes while their parent asks how they ended, as a rank's watchdog does beside a
// launcher that is just as quick. Ends with 1 if that throws.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <thread>

#include "host/process.h"

namespace {

constexpr int kProcesses = 4000;

struct Asked {
  long there = 0, gone = 0, thrown = 0;
};

void ask(const std::atomic<int>& pid, const std::atomic<bool>& stop, Asked& asked) {
  while (!stop) {
    try {
      ++(pyallreduce::host::process_facts(pid) ? asked.there : asked.gone);
    } catch (const std::exception& error) {
      if (asked.thrown++ == 0) std::printf("%s\n", error.what());
    }
  }
}

}  // namespace

int main() {
  std::atomic<int> pid{::getpid()};
  std::atomic<bool> stop{false};
  Asked asked;
  std::thread asks([&] { ask(pid, stop, asked); });
  for (int number = 0; number < kProcesses; ++number) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    if (child < 0) continue;
    pid = child;
    ::waitpid(child, nullptr, 0);
  }
  stop = true;
  asks.join();
  std::printf("%ld there, %ld gone, %ld thrown\n", asked.there, asked.gone, asked.thrown);
  return asked.thrown == 0 ? 0 : 1;
}
