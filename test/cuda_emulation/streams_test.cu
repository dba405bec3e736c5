// Order between streams, events, the host and pinned memory.
#include <cuda_runtime.h>

#include <vector>

#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation;
using namespace cuda_emulation::test;
using Catch::Matchers::Contains;

namespace {

__global__ void fill_kernel(float* y, float value, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    y[i] = value;
}
__global__ void add_kernel(float* y, const float* x, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    y[i] += x[i];
}

struct Stream {
  explicit Stream(unsigned int flags = cudaStreamNonBlocking) {
    require(cudaStreamCreateWithFlags(&handle, flags));
  }
  ~Stream() { cudaStreamDestroy(handle); }
  cudaStream_t handle = nullptr;
};
struct Event {
  Event() { require(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(handle); }
  cudaEvent_t handle = nullptr;
};

constexpr int kSize = 100;

void fill(const DeviceBuffer<float>& y, const Stream& stream, int n = kSize) {
  require(launch(fill_kernel, 1, 32, 0, stream.handle, y.data(), 1.0f, n));
}
void add(const DeviceBuffer<float>& y, const DeviceBuffer<float>& x, const Stream& stream) {
  require(launch(add_kernel, 1, 32, 0, stream.handle, y.data(), x.data(), kSize));
}

}  // namespace

TEST_CASE("a read on another stream needs an event", "[accesses]") {
  const Stream first, second;
  const DeviceBuffer<float> x(kSize), y(std::vector<float>(kSize, 1.0f));
  fill(x, first);
  CHECK_THAT(violation_of([&] { add(y, x, second); }),
             Contains("memory that another stream wrote") && Contains("is not ordered after") &&
                 Contains("fill_kernel"));
  const Event event;
  require(cudaEventRecord(event.handle, first.handle));
  require(cudaStreamWaitEvent(second.handle, event.handle, 0));
  add(y, x, second);
  // The host's read, on the default stream, is not ordered after a non-blocking stream.
  CHECK_THAT(violation_of([&] { y.read(); }), Contains("copy from device to host"));
  require(cudaStreamSynchronize(second.handle));
  CHECK(y.read() == std::vector<float>(kSize, 2.0f));
}

TEST_CASE("an event recorded too early does not order what follows it", "[accesses]") {
  const Stream first, second;
  const DeviceBuffer<float> x(kSize), y(std::vector<float>(kSize, 1.0f));
  const Event event;
  fill(x, first, kSize / 2);
  require(cudaEventRecord(event.handle, first.handle));
  fill(x, first);
  require(cudaStreamWaitEvent(second.handle, event.handle, 0));
  CHECK_THAT(violation_of([&] { add(y, x, second); }),
             Contains("memory that another stream wrote"));
}

TEST_CASE("writes over what another stream reads or writes", "[accesses]") {
  const Stream first, second;
  const DeviceBuffer<float> x(std::vector<float>(kSize, 1.0f)), y(std::vector<float>(kSize, 1.0f));
  add(y, x, first);
  CHECK_THAT(violation_of([&] { fill(x, second); }),
             Contains("write over memory that another stream reads"));
  CHECK_THAT(violation_of([&] { fill(y, second); }),
             Contains("write over memory that another stream"));
  require(cudaStreamSynchronize(first.handle));
  fill(x, second);
  // Other parts of one allocation are independent.
  const DeviceBuffer<float> z(2 * kSize);
  require(launch(fill_kernel, 1, 32, 0, first.handle, z.data(), 1.0f, kSize));
  require(launch(fill_kernel, 1, 32, 0, second.handle, z.data() + kSize, 1.0f, kSize));
}

TEST_CASE("the default stream and blocking streams wait for each other, non-blocking ones do not",
          "[accesses]") {
  const Stream blocking(cudaStreamDefault), free;
  const DeviceBuffer<float> x(kSize), y(kSize);
  fill(x, blocking);
  require(cudaMemcpyAsync(y.data(), x.data(), kSize * sizeof(float), cudaMemcpyDeviceToDevice,
                          nullptr));
  fill(y, blocking);
  require(cudaDeviceSynchronize());
  fill(x, free);
  CHECK_THAT(violation_of([&] {
               cudaMemcpyAsync(y.data(), x.data(), kSize * sizeof(float), cudaMemcpyDeviceToDevice,
                               nullptr);
             }),
             Contains("is not ordered after"));
  require(cudaDeviceSynchronize());
}

TEST_CASE("pinned memory is filled when the host has waited") {
  const Stream stream;
  const DeviceBuffer<float> x(kSize);
  float* pinned = nullptr;
  require(cudaMallocHost(&pinned, kSize * sizeof(float)));
  fill(x, stream);
  require(cudaMemcpyAsync(pinned, x.data(), kSize * sizeof(float), cudaMemcpyDeviceToHost,
                          stream.handle));
  CHECK(std::isnan(pinned[0]));
  CHECK_THAT(violation_of([&] { cudaFreeHost(pinned); }), Contains("still uses"));
  require(cudaStreamSynchronize(stream.handle));
  CHECK(pinned[kSize - 1] == 1.0f);

  // And must not change while a copy reads it.
  require(cudaMemcpyAsync(x.data(), pinned, kSize * sizeof(float), cudaMemcpyHostToDevice,
                          stream.handle));
  pinned[5] = 7.0f;
  CHECK_THAT(violation_of([&] { cudaStreamSynchronize(stream.handle); }),
             Contains("the host changed pinned memory"));
  require(cudaFreeHost(pinned));
}

TEST_CASE("a bounce through pinned memory in stream order") {
  const Stream stream;
  const DeviceBuffer<float> x(kSize), y(kSize);
  float* pinned = nullptr;
  require(cudaMallocHost(&pinned, kSize * sizeof(float)));
  fill(x, stream);
  require(cudaMemcpyAsync(pinned, x.data(), kSize * sizeof(float), cudaMemcpyDeviceToHost,
                          stream.handle));
  require(cudaMemcpyAsync(y.data(), pinned, kSize * sizeof(float), cudaMemcpyHostToDevice,
                          stream.handle));
  require(cudaMemcpyAsync(pinned, x.data(), kSize * sizeof(float), cudaMemcpyDeviceToHost,
                          stream.handle));
  require(cudaStreamSynchronize(stream.handle));
  CHECK(y.read() == std::vector<float>(kSize, 1.0f));
  require(cudaFreeHost(pinned));
}

TEST_CASE("events: queries, times, handles") {
  const Stream stream;
  const DeviceBuffer<float> x(kSize);
  cudaEvent_t start = nullptr, end = nullptr;
  require(cudaEventCreate(&start));
  require(cudaEventCreate(&end));
  float ms = -1.0f;
  CHECK(cudaEventElapsedTime(&ms, start, end) == cudaErrorInvalidResourceHandle);
  require(cudaEventRecord(start, stream.handle));
  fill(x, stream);
  require(cudaEventRecord(end, stream.handle));
  CHECK(cudaEventElapsedTime(&ms, start, end) == cudaErrorNotReady);
  {
    // Under a seed an event is sometimes not ready yet.
    const SeedScope scope(3);
    int not_ready = 0;
    for (int i = 0; i < 20; ++i) {
      fill(x, stream);
      require(cudaEventRecord(end, stream.handle));
      while (cudaEventQuery(end) == cudaErrorNotReady) ++not_ready;
    }
    CHECK(not_ready > 0);
  }
  REQUIRE(cudaEventElapsedTime(&ms, start, end) == cudaSuccess);
  CHECK(ms >= 0.0f);
  require(cudaEventDestroy(end));
  CHECK_THAT(violation_of([&] { cudaEventRecord(end, stream.handle); }),
             Contains("not a live event"));
  require(cudaEventDestroy(start));
}

TEST_CASE("devices do not share memory or streams") {
  int device = -1;
  require(cudaGetDevice(&device));
  REQUIRE(device == 0);
  const DeviceBuffer<float> x(std::vector<float>(kSize, 1.0f));
  const Stream stream;
  require(cudaSetDevice(1));
  CHECK_THAT(violation_of([&] { launch(fill_kernel, 1, 32, 0, nullptr, x.data(), 1.0f, kSize); }),
             Contains("on device 0"));
  CHECK_THAT(violation_of([&] {
               launch(fill_kernel, 1, 32, 0, stream.handle, static_cast<float*>(nullptr), 1.0f, 0);
             }),
             Contains("a stream of device 0 used while device 1 is current"));
  CHECK_THAT(violation_of([&] { cudaMemset(x.data(), 0, 4); }),
             Contains("memory of device 0 used on device 1"));
  CHECK(cudaSetDevice(99) == cudaErrorInvalidDevice);
  require(cudaSetDevice(0));
}

TEST_CASE("memory runs out, drivers are old, devices are missing") {
  const Hardware before = hardware();
  Hardware small = before;
  small.memory_bytes = counters().live_bytes + (1 << 20);
  set_hardware(small);
  void* p = nullptr;
  CHECK(cudaMalloc(&p, std::size_t{1} << 30) == cudaErrorMemoryAllocation);
  CHECK(p == nullptr);
  CHECK_THAT(cudaGetErrorString(cudaErrorMemoryAllocation),
             Contains("out of memory") && Contains("1073741824 bytes asked"));
  Hardware none = before;
  none.num_devices = 0;
  set_hardware(none);
  int count = -1;
  CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
  CHECK(count == 0);
  Hardware old = before;
  old.driver_version = 11040;
  set_hardware(old);
  CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
  set_hardware(before);
}

TEST_CASE("a write is ordered after what another stream reads, though its own has read since",
          "[accesses]") {
  const Stream first, second;
  const DeviceBuffer<float> x(std::vector<float>(kSize, 1.0f)), y(kSize), z(kSize);
  fill(y, first);
  fill(z, second);
  add(y, x, first);
  add(z, x, second);
  CHECK_THAT(violation_of([&] { fill(x, second); }), Contains("memory that another stream reads"));
  const Event event;
  require(cudaEventRecord(event.handle, first.handle));
  require(cudaStreamWaitEvent(second.handle, event.handle, 0));
  fill(x, second);
}
