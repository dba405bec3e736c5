// StopSignals: requests from outside to save and stop. While one exists, SIGTERM, SIGUSR1 (both:
// the job is to be taken off its machines and queued again) and SIGINT (a person) only leave a note
// here; a second SIGINT ends the process at once, as without this.
#pragma once

#include <array>
#include <csignal>

namespace openmoe {

// The exit code of a job that was asked to leave its machines, saved and stopped: it is to be
// queued again. Above the codes of errors (core/base/error.h) and below 126, from which on shells
// mean signals and missing programs.
inline constexpr int kExitRequeue = 85;

class StopSignals {
 public:
  StopSignals();   // throws RuntimeFault
  ~StopSignals();  // what the signals did before, they do again
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // Those that are caught; where ranks got different ones, the first in this order counts.
  static constexpr std::array<int, 3> kSignals = {SIGTERM, SIGUSR1, SIGINT};

  // The signal this process got since construction; 0: none.
  int caught() const;

  static const char* name_of(int signal);
  // The exit code of a job that a signal stopped and whose checkpoint is saved: kExitRequeue, or
  // for SIGINT what a shell expects of an interrupted program.
  static int exit_code_of(int signal);

 private:
  std::array<struct sigaction, 3> before_{};
};

}  // namespace openmoe
