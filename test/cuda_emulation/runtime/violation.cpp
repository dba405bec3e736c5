#include "test/cuda_emulation/runtime/violation.h"

#include <cstdlib>
#include <map>
#include <utility>

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/streams.h"

namespace cuda_emulation {
namespace {

struct Settings {
  std::uint64_t seed = 0;
  Hardware hardware;
};

std::int64_t environment_number(const char* name, std::int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == 0 ? otherwise : std::strtoll(value, nullptr, 10);
}

Settings& settings() {
  static Settings* instance = [] {
    auto* made = new Settings;
    made->seed = static_cast<std::uint64_t>(environment_number("OPENMOE_EMULATION_SEED", 0));
    made->hardware.num_devices =
        static_cast<int>(environment_number("OPENMOE_EMULATION_DEVICES", 8));
    made->hardware.arch = static_cast<int>(environment_number("OPENMOE_EMULATION_ARCH", 90));
    made->hardware.memory_bytes =
        static_cast<std::size_t>(environment_number("OPENMOE_EMULATION_MEMORY_MB", 8192)) << 20;
    made->hardware.driver_version =
        static_cast<int>(environment_number("OPENMOE_EMULATION_DRIVER", 13000));
    seed_schedule(made->seed);
    return made;
  }();
  return *instance;
}

struct LastError {
  cudaError_t error = cudaSuccess;
  cudaError_t described =
      cudaSuccess;  // the error `words` are about; stays when the last error is taken
  std::string words;
};
thread_local LastError t_last_error;

}  // namespace

void set_seed(std::uint64_t value) {
  settings().seed = value;
  seed_schedule(value);
}
std::uint64_t seed() {
  return settings().seed;
}
Hardware hardware() {
  return settings().hardware;
}
void set_hardware(const Hardware& value) {
  settings().hardware = value;
}

void violation(const std::string& message) {
  if (in_kernel()) stop_kernel(describe_thread() + ": " + message);
  throw Violation("emulated CUDA device: " + message);
}

cudaError_t fail(cudaError_t error, const std::string& detail) {
  t_last_error.error = error;
  t_last_error.described = error;
  t_last_error.words = detail;
  return error;
}

}  // namespace cuda_emulation

using cuda_emulation::t_last_error;

cudaError_t cudaGetLastError() {
  return std::exchange(t_last_error.error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return t_last_error.error;
}

namespace {

struct ErrorWords {
  const char* name;
  const char* words;
};
const std::map<cudaError_t, ErrorWords>& error_words() {
  static const std::map<cudaError_t, ErrorWords> all{
      {cudaSuccess, {"cudaSuccess", "no error"}},
      {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
      {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
      {cudaErrorInitializationError, {"cudaErrorInitializationError", "initialization error"}},
      {cudaErrorInvalidConfiguration,
       {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
      {cudaErrorInvalidMemcpyDirection,
       {"cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"}},
      {cudaErrorInsufficientDriver,
       {"cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version"}},
      {cudaErrorNoDevice, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
      {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
      {cudaErrorNoKernelImageForDevice,
       {"cudaErrorNoKernelImageForDevice",
        "no kernel image is available for execution on the device"}},
      {cudaErrorInvalidResourceHandle,
       {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
      {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
      {cudaErrorIllegalAddress,
       {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
      {cudaErrorLaunchOutOfResources,
       {"cudaErrorLaunchOutOfResources", "too many resources requested for launch"}},
      {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
      {cudaErrorNotSupported, {"cudaErrorNotSupported", "operation not supported"}},
      {cudaErrorUnknown, {"cudaErrorUnknown", "unknown error"}},
  };
  return all;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const auto found = error_words().find(error);
  return found == error_words().end() ? "unrecognized error code" : found->second.name;
}
const char* cudaGetErrorString(cudaError_t error) {
  const auto found = error_words().find(error);
  const char* words =
      found == error_words().end() ? "unrecognized error code" : found->second.words;
  if (t_last_error.described != error || error == cudaSuccess) return words;
  return cuda_emulation::intern(std::string(words) + " [" + t_last_error.words + "]");
}
