#include "test/cuda_emulation/runtime/streams.h"

#include <deque>
#include <set>
#include <string>
#include <unordered_set>

#include "test/cuda_emulation/runtime/access.h"
#include "test/cuda_emulation/runtime/host_memory.h"
#include "test/cuda_emulation/runtime/registry.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

struct State {
  std::recursive_mutex mutex;
  std::vector<CUstream_st*> streams;          // by index, never reused
  std::vector<CUstream_st*> default_streams;  // by device
  std::set<const CUstream_st*> live_streams;
  std::set<const CUevent_st*> live_events;
  std::vector<OperationRecord> operations{{0, 0, ""}, {0, 0, ""}};
  std::unordered_set<std::string> names;
  Clock host_clock;
  std::int64_t host_waits = 0;
};

State& state() {
  static State* instance = new State;
  return *instance;
}

thread_local int t_device = 0;

CUstream_st* new_stream(int device, bool non_blocking, bool is_default) {
  State& s = state();
  auto* stream = new CUstream_st;
  stream->index = static_cast<std::uint32_t>(s.streams.size());
  stream->device = device;
  stream->non_blocking = non_blocking;
  stream->is_default = is_default;
  stream->clock.resize(stream->index + 1, 0);
  s.streams.push_back(stream);
  s.live_streams.insert(stream);
  return stream;
}

CUstream_st& default_stream(int device) {
  State& s = state();
  const auto place = static_cast<std::size_t>(device);
  if (s.default_streams.size() <= place) s.default_streams.resize(place + 1, nullptr);
  if (s.default_streams[place] == nullptr)
    s.default_streams[place] = new_stream(device, false, true);
  return *s.default_streams[place];
}

// The legacy default stream and the blocking streams of a device wait for each other.
void join_implicitly(CUstream_st& stream) {
  if (stream.non_blocking) return;
  if (!stream.is_default) {
    join(stream.clock, default_stream(stream.device).clock);
    return;
  }
  for (const CUstream_st* other : state().streams)
    if (other != &stream && other->device == stream.device && !other->non_blocking)
      join(stream.clock, other->clock);
}

}  // namespace

std::recursive_mutex& api_mutex() {
  return state().mutex;
}

int current_device() {
  return t_device;
}
bool set_current_device(int device) {
  if (device < 0 || device >= hardware().num_devices) return false;
  t_device = device;
  return true;
}

CUstream_st& stream_of(cudaStream_t handle, const char* call) {
  if (handle == nullptr) return default_stream(current_device());
  if (state().live_streams.count(handle) == 0)
    violation(text(call, ": ", static_cast<const void*>(handle), " is not a live stream"));
  return *handle;
}
CUevent_st& event_of(cudaEvent_t handle, const char* call) {
  if (state().live_events.count(handle) == 0)
    violation(text(call, ": ", static_cast<const void*>(handle), " is not a live event"));
  return *handle;
}

cudaStream_t create_stream(bool non_blocking) {
  return new_stream(current_device(), non_blocking, false);
}
void destroy_stream(CUstream_st& stream) {
  // The record stays: operations refer to it by index.
  state().live_streams.erase(&stream);
}
cudaEvent_t create_event(bool timed) {
  auto* event = new CUevent_st;
  event->device = current_device();
  event->timed = timed;
  state().live_events.insert(event);
  return event;
}
void destroy_event(CUevent_st& event) {
  state().live_events.erase(&event);
  delete &event;
}

Operation::Operation(CUstream_st& stream, const char* name) : stream_(stream) {
  State& s = state();
  if (stream.device != current_device())
    violation(text(name, ": a stream of device ", stream.device, " used while device ",
                   current_device(), " is current"));
  join(stream.clock, s.host_clock);
  join_implicitly(stream);
  if (stream.clock.size() <= stream.index) stream.clock.resize(stream.index + 1, 0);
  const std::uint32_t tick = ++stream.clock[stream.index];
  id_ = static_cast<std::uint32_t>(s.operations.size());
  s.operations.push_back({stream.index, tick, name});
  g_access.current = id_;
  g_access.clock = stream.clock.data();
  g_access.clock_size = stream.clock.size();
  g_access.operations = s.operations.data();
}

Operation::~Operation() {
  g_access.current = 0;
}

const char* intern(const std::string& name) {
  return state().names.insert(name).first->c_str();
}

std::string describe_operation(std::uint32_t id) {
  const OperationRecord& record = state().operations[id];
  const CUstream_st& stream = *state().streams[record.stream];
  return text(record.name, " (stream ", record.stream,
              stream.is_default ? ", the default stream" : "", ", operation ", record.tick, ")");
}

void host_waits_for(const Clock& clock) {
  State& s = state();
  ++s.host_waits;
  join(s.host_clock, clock);
  host_memory::settle(s.host_clock);
}

void host_waits_for_device(int device) {
  State& s = state();
  Clock all;
  for (const CUstream_st* stream : s.streams)
    if (stream->device == device) join(all, stream->clock);
  host_waits_for(all);
}

const Clock& host_clock() {
  return state().host_clock;
}
bool host_is_behind(const Clock& clock) {
  const Clock& host = state().host_clock;
  for (std::size_t i = 0; i < clock.size(); ++i)
    if (clock[i] > (i < host.size() ? host[i] : 0)) return true;
  return false;
}
std::int64_t num_host_waits() {
  return state().host_waits;
}

}  // namespace cuda_emulation
