#include "parallel/last_words.h"

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

namespace openmoe {

bool wait_until_read(int descriptor, std::chrono::milliseconds patience) {
  struct stat kind {};
  if (fstat(descriptor, &kind) != 0 || !S_ISFIFO(kind.st_mode)) return true;
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;;) {
    int unread = 0;
    if (ioctl(descriptor, FIONREAD, &unread) != 0 || unread == 0) return true;
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void leave_last_words() {
  wait_until_read(STDERR_FILENO);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}

}  // namespace openmoe
