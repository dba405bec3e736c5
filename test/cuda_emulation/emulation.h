// What tests may ask of the emulated devices beyond the CUDA API: the schedule, the hardware, and
// the faults found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace cuda_emulation {

// A program did what a device would punish with wrong numbers, a hang or a crash instead of an
// error code: the message says what, where and by which operation. Thrown from the API call that
// ran the operation.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Orders of blocks and threads. 0: as numbered. The environment variable OPENMOE_EMULATION_SEED is
// the first value.
void set_seed(std::uint64_t seed);
std::uint64_t seed();

// The hardware. First values: environment OPENMOE_EMULATION_DEVICES (8), OPENMOE_EMULATION_ARCH
// (90: sm_90), OPENMOE_EMULATION_MEMORY_MB (8192 per device), OPENMOE_EMULATION_DRIVER (13000).
struct Hardware {
  int num_devices = 8;
  int arch = 90;
  std::size_t memory_bytes = std::size_t{8} << 30;
  int driver_version = 13000;
};
Hardware hardware();
void set_hardware(const Hardware& hardware);

// The cuDNN that is installed.
struct Cudnn {
  bool present = true;
  int version = 91900;
  std::string refusal;  // what its heuristics say instead of an engine; "": they find one
};
Cudnn cudnn();
void set_cudnn(const Cudnn& cudnn);
std::int64_t num_attention_plans();  // built since the start of the process

// Work done since the start of the process.
struct Counters {
  std::int64_t launches = 0;
  std::int64_t blocks = 0;
  std::int64_t switches = 0;  // from one thread of a block to another
  std::int64_t allocations = 0;
  std::int64_t live_bytes = 0;
  std::int64_t host_waits = 0;  // calls that made the host wait for a stream, an event or a device
};
Counters counters();

// True where kernels were compiled with their memory accesses reported to the runtime, so that
// bounds, initialisation and order of every access are checked; false in builds with a sanitizer,
// whose own checks take their place.
bool accesses_checked();

// The address through which the host may look at device memory without any check.
const void* peek(const void* device_pointer);

}  // namespace cuda_emulation
