// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace pyallreduce::host {

// The same file by a number above 2; what it is given is closed. In a process without a standard
// error whoever writes there would write into whatever got its number.
int above_standard(int fd);

// Of a process; -1 where the system has none.
int open_pidfd(int64_t pid);
// Whether the process has ended; false if this can't be told any more: another part of the program
// may have closed every descriptor that it does not know, and the number may be another file's now.
bool has_ended(int pidfd);
// Leaves such a file open.
void close_pidfd(int pidfd);

}  // namespace pyallreduce::host
