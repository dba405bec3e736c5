// Devices, streams and events.
#include <cstdio>
#include <cstring>
#include <mutex>

#include "cuda_runtime_api.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/launch.h"
#include "test/cuda_emulation/runtime/registry.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

using namespace cuda_emulation;

namespace {

constexpr int kMultiprocessors = 4;
constexpr int kRuntimeVersion = 13000;

bool is_device(int device) {
  return device >= 0 && device < hardware().num_devices;
}
cudaError_t no_such_device(int device) {
  return fail(cudaErrorInvalidDevice, text("device ", device, " of ", hardware().num_devices));
}

cudaError_t usable() {
  if (hardware().driver_version < kRuntimeVersion)
    return fail(cudaErrorInsufficientDriver, text("driver ", hardware().driver_version));
  if (hardware().num_devices == 0) return fail(cudaErrorNoDevice, "no emulated device");
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  *count = hardware().num_devices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  return set_current_device(device) ? cudaSuccess : no_such_device(device);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) return no_such_device(device);
  *properties = cudaDeviceProp{};
  std::snprintf(properties->name, sizeof properties->name, "Emulated CUDA device");
  properties->uuid.bytes[0] = static_cast<char>(device);
  properties->totalGlobalMem = hardware().memory_bytes;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = shared_limit();
  properties->sharedMemPerMultiprocessor = shared_limit() + 1024;
  properties->regsPerBlock = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  const int threads[] = {1024, 1024, 64};
  const int grid[] = {0x7fffffff, 65535, 65535};
  std::memcpy(properties->maxThreadsDim, threads, sizeof threads);
  std::memcpy(properties->maxGridSize, grid, sizeof grid);
  properties->major = hardware().arch / 10;
  properties->minor = hardware().arch % 10;
  properties->multiProcessorCount = kMultiprocessors;
  properties->concurrentKernels = 1;
  properties->pciBusID = device + 1;
  properties->l2CacheSize = 4 << 20;
  properties->memoryBusWidth = 64;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!is_device(device)) return no_such_device(device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = hardware().arch / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = hardware().arch % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(shared_limit()) + 1024;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(shared_limit());
      break;
    default:
      return fail(cudaErrorInvalidValue, text("attribute ", static_cast<int>(attribute)));
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  if (!is_device(device)) return no_such_device(device);
  std::snprintf(bus_id, static_cast<std::size_t>(length), "0000:%02x:00.0",
                static_cast<unsigned int>(device + 1));
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(api_mutex());
  host_waits_for_device(current_device());
  return cudaSuccess;
}
cudaError_t cudaDeviceReset() {
  return cudaDeviceSynchronize();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = hardware().driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntimeVersion;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  const std::lock_guard lock(api_mutex());
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  *stream = create_stream((flags & cudaStreamNonBlocking) != 0);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  if (stream == nullptr) return fail(cudaErrorInvalidResourceHandle, "the default stream");
  destroy_stream(stream_of(stream, "cudaStreamDestroy"));
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  host_waits_for(stream_of(stream, "cudaStreamSynchronize").clock);
  return cudaSuccess;
}
// Work that the host has not waited for is sometimes, by the seed, not ready yet.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  const Clock& clock = stream_of(stream, "cudaStreamQuery").clock;
  if (host_is_behind(clock) && seed() != 0 && schedule_random() % 2 == 0) return cudaErrorNotReady;
  host_waits_for(clock);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  const std::lock_guard lock(api_mutex());
  CUstream_st& waiting = stream_of(stream, "cudaStreamWaitEvent");
  join(waiting.clock, event_of(event, "cudaStreamWaitEvent").clock);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  const std::lock_guard lock(api_mutex());
  *event = create_event((flags & cudaEventDisableTiming) == 0);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(api_mutex());
  destroy_event(event_of(event, "cudaEventDestroy"));
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  CUevent_st& recorded = event_of(event, "cudaEventRecord");
  Operation operation(stream_of(stream, "cudaEventRecord"), "event");
  if (recorded.device != operation.stream().device)
    return fail(cudaErrorInvalidResourceHandle,
                text("event of device ", recorded.device, " on a stream of device ",
                     operation.stream().device));
  recorded.clock = operation.stream().clock;
  recorded.recorded = true;
  recorded.time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(api_mutex());
  host_waits_for(event_of(event, "cudaEventSynchronize").clock);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(api_mutex());
  const Clock& clock = event_of(event, "cudaEventQuery").clock;
  if (host_is_behind(clock) && seed() != 0 && schedule_random() % 2 == 0) return cudaErrorNotReady;
  host_waits_for(clock);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard lock(api_mutex());
  const CUevent_st& from = event_of(start, "cudaEventElapsedTime");
  const CUevent_st& to = event_of(end, "cudaEventElapsedTime");
  if (!from.timed || !to.timed || !from.recorded || !to.recorded)
    return fail(cudaErrorInvalidResourceHandle, "an event without timing, or never recorded");
  if (host_is_behind(to.clock))
    return fail(cudaErrorNotReady, "the host has not waited for the later event");
  *milliseconds = std::chrono::duration<float, std::milli>(to.time - from.time).count();
  return cudaSuccess;
}
