// The three kinds of failure of the program. See README, "When something is wrong".
#pragma once

#include <stdexcept>
#include <string>

namespace openmoe {

// The user's recipe, data, grid or command line is wrong. The message names the place, the value
// found, what is allowed and the way out. Thrown identically on all ranks where possible; main
// prints it once and exits with kExitUserError.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A library, device or file failed while the program was used correctly. The message holds the call
// and the place. main prints it with the rank's coordinates and ends the whole job.
class RuntimeFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr int kExitSuccess = 0;
inline constexpr int kExitFailure = 1;    // a runtime fault, or a self test that failed
inline constexpr int kExitUserError = 2;  // wrong input

}  // namespace openmoe
