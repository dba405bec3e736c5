// Streams and events. Work runs when it is submitted; what a device could reorder is known from
// vector clocks: every stream counts its operations and remembers how far it is ordered behind the
// others.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cuda_runtime_api.h"

namespace cuda_emulation {

using Clock = std::vector<std::uint32_t>;  // by stream index: operations up to this one are done

inline void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (std::size_t i = 0; i < from.size(); ++i)
    if (into[i] < from[i]) into[i] = from[i];
}

}  // namespace cuda_emulation

struct CUstream_st {
  std::uint32_t index = 0;
  int device = 0;
  bool non_blocking = false;
  bool is_default = false;
  cuda_emulation::Clock clock;
};

struct CUevent_st {
  int device = 0;
  bool timed = true;
  bool recorded = false;
  int queries = 0;
  cuda_emulation::Clock clock;
  std::chrono::steady_clock::time_point time;
};

namespace cuda_emulation {

// All of the API runs under this lock, kernels included.
std::recursive_mutex& api_mutex();

// The device of the calling host thread.
int current_device();
bool set_current_device(int device);  // false when there is none

// nullptr stands for the current device's default stream. Ends the program's call when the handle
// is not a live stream.
CUstream_st& stream_of(cudaStream_t handle, const char* call);
CUevent_st& event_of(cudaEvent_t handle, const char* call);

// An operation on a stream: orders it, makes it the running one for the checks of memory, ends with
// the object.
class Operation {
 public:
  // `name` must outlive the process's use of it: see intern.
  Operation(CUstream_st& stream, const char* name);
  ~Operation();
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  std::uint32_t id() const { return id_; }
  CUstream_st& stream() { return stream_; }

 private:
  CUstream_st& stream_;
  std::uint32_t id_;
};

// One copy of equal texts, kept for ever.
const char* intern(const std::string& name);
// "kernel rms_norm on stream 2", for messages.
std::string describe_operation(std::uint32_t id);

// The host waits: whatever `clock` covers is done for it and for all work submitted later.
void host_waits_for(const Clock& clock);
void host_waits_for_device(int device);
const Clock& host_clock();
bool host_is_behind(const Clock& clock);
std::int64_t num_host_waits();

}  // namespace cuda_emulation
