#include "apps/stop_signals.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

// A signal handler sees nothing but globals.
std::atomic<int> caught_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

void note(int signal) {
  caught_signal.store(signal, std::memory_order_relaxed);
}

}  // namespace

StopSignals::StopSignals() {
  caught_signal.store(0, std::memory_order_relaxed);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction action {};
    action.sa_handler = note;
    // Calls that were interrupted go on: no file or network code here expects to be disturbed.
    action.sa_flags = SA_RESTART;
    if (kSignals[i] == SIGINT) action.sa_flags |= static_cast<int>(SA_RESETHAND);
    if (sigaction(kSignals[i], &action, &before_[i]) != 0)
      throw RuntimeFault(
          concat("sigaction failed for ", name_of(kSignals[i]), ": ", std::strerror(errno)));
  }
}

StopSignals::~StopSignals() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

int StopSignals::caught() const {
  return caught_signal.load(std::memory_order_relaxed);
}

const char* StopSignals::name_of(int signal) {
  return signal == SIGTERM ? "SIGTERM" : signal == SIGUSR1 ? "SIGUSR1" : "SIGINT";
}

int StopSignals::exit_code_of(int signal) {
  return signal == SIGINT ? 128 + SIGINT : kExitRequeue;
}

}  // namespace openmoe
