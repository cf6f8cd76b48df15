// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#include "host/descriptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace pyallreduce::host {
namespace {

// Signal 0 is sent to nobody, and only to what is a pidfd.
bool is_pidfd(int fd) {
#ifdef SYS_pidfd_send_signal
  return fd >= 0 && (::syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) == 0 || errno != EBADF);
#else
  return fd >= 0;
#endif
}

}  // namespace

int above_standard(int fd) {
  if (fd < 0 || fd > STDERR_FILENO) return fd;
  const int above = ::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  const int error = errno;
  ::close(fd);
  errno = error;
  return above;
}

int open_pidfd(int64_t pid) {
#ifdef SYS_pidfd_open
  return above_standard(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)));
#else
  (void)pid;
  return -1;
#endif
}

bool has_ended(int pidfd) {
  pollfd one{pidfd, POLLIN, 0};
  return pidfd >= 0 && ::poll(&one, 1, 0) > 0 && (one.revents & POLLIN) != 0 && is_pidfd(pidfd);
}

void close_pidfd(int pidfd) {
  if (is_pidfd(pidfd)) ::close(pidfd);
}

}  // namespace pyallreduce::host
