// Faults of the emulated program.
#pragma once

#include <sstream>
#include <string>

#include "cuda_runtime_api.h"
#include "test/cuda_emulation/emulation.h"

namespace cuda_emulation {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws Violation; inside a kernel it first leaves the thread that calls and gives up the launch.
[[noreturn]] void violation(const std::string& message);

// An error the device reports by itself: remembered as the last error, with words that
// cudaGetErrorString adds.
cudaError_t fail(cudaError_t error, const std::string& detail);

}  // namespace cuda_emulation
