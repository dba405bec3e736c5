// Every check of the emulation fires: bounds, initialisation, alignment, host pointers, launch
// limits, barriers, warps.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "test/cuda_emulation/device_access.h"
#include "test/cuda_emulation/emulation.h"
#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation;
using namespace cuda_emulation::test;
using Catch::Matchers::Contains;

namespace {

__global__ void copy_kernel(float* y, const float* x, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) y[i] = x[i];
}
__global__ void store_kernel(float* y, std::int64_t at) {
  y[at] = 1.0f;
}
__global__ void load_wide_kernel(float* y, const float* x, int at) {
  const float4 v = *reinterpret_cast<const float4*>(x + at);
  y[0] = v.x + v.w;
}
__global__ void load_checked_kernel(float* y, const float* x, int at) {
  y[0] = openmoe::cuda::checked_pointer<float2>(x + at)->y;
}
__global__ void table_kernel(float* y, int at) {
  __shared__ float table[32];
  table[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) y[0] = table[at];
}
__global__ void dynamic_kernel(float* y, int at) {
  float* room = openmoe::cuda::dynamic_shared<float>();
  room[at] = 2.0f;
  y[0] = room[at];
}
__global__ void unwritten_shared_kernel(float* y) {
  __shared__ float part[4];
  part[gridDim.x] = 1.0f;
  y[0] = part[3];
}
__global__ void overflow_kernel(int* y, int n) {
  y[0] = n * static_cast<int>(blockDim.x);
}
__global__ void early_return_kernel() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void stuck_warp_kernel() {
  if (threadIdx.x == 0)
    __syncwarp(0x3u);
  else
    __syncthreads();
}
__global__ void absent_lane_kernel(int* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 16);
}
__global__ void wrong_mask_kernel(int* y) {
  y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0);
}
__global__ void mixed_warp_kernel(int* y) {
  if (threadIdx.x % 2 == 0)
    y[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  else
    y[threadIdx.x] = static_cast<int>(__ballot_sync(0xffffffffu, 1));
}
__global__ void foreign_local_kernel(int* y) {
  __shared__ int* pointer;
  int local = 7;
  if (threadIdx.x == 0) pointer = &local;
  __syncthreads();
  if (threadIdx.x == 1) y[0] = *pointer;
  __syncthreads();
}
__global__ void indirect_kernel(float* const* pointers, int n) {
  pointers[0][threadIdx.x] = static_cast<float>(n);
}
__global__ void trap_kernel() {
  __trap();
}
__global__ void race_kernel(int* y) {
  __shared__ int value;
  if (threadIdx.x == 31) value = 5;
  // A barrier is missing here.
  y[threadIdx.x] = value;
}
__global__ void big_shared_kernel(float* y) {
  __shared__ float room[6000];
  room[threadIdx.x] = 0.0f;
  y[0] = room[0];
}

std::string message_of_launch(void (*kernel)()) {
  return violation_of([&] { launch(kernel, 1, 64, 0, nullptr); });
}

}  // namespace

TEST_CASE("accesses outside memory", "[accesses]") {
  const DeviceBuffer<float> x(std::vector<float>(100, 1.0f)), y(100);
  REQUIRE(launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x.data(), 100) == cudaSuccess);
  CHECK_THAT(violation_of([&] { launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x.data(), 101); }),
             Contains("copy_kernel") && Contains("thread (4, 0, 0)") &&
                 Contains("0 bytes behind the end") && Contains("read of 4 bytes"));
  CHECK_THAT(violation_of(
                 [&] { launch(store_kernel, 1, 1, 0, nullptr, y.data(), std::int64_t{1} << 33); }),
             Contains("write of 4 bytes"));
  CHECK_THAT(
      violation_of([&] { launch(store_kernel, 1, 1, 0, nullptr, y.data(), std::int64_t{-1}); }),
      Contains("write of 4 bytes outside memory"));
}

TEST_CASE("use after free, double free", "[accesses]") {
  float* x = nullptr;
  REQUIRE(cudaMalloc(&x, 400) == cudaSuccess);
  const DeviceBuffer<float> y(100);
  REQUIRE(cudaMemset(x, 0, 400) == cudaSuccess);
  REQUIRE(cudaFree(x) == cudaSuccess);
  CHECK_THAT(violation_of([&] { launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x, 10); }),
             Contains("FREED"));
  CHECK_THAT(violation_of([&] { cudaMemset(x, 0, 4); }), Contains("FREED"));
  CHECK_THAT(violation_of([&] { cudaFree(x); }), Contains("freed twice"));
  CHECK_THAT(violation_of([&] { cudaFree(y.data() + 1); }), Contains("not the start"));
}

TEST_CASE("reads of memory that nothing has written", "[accesses]") {
  const DeviceBuffer<float> x(100), y(100);
  CHECK_THAT(violation_of([&] { launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x.data(), 100); }),
             Contains("nothing has written") && Contains("byte 0 of"));
  REQUIRE(cudaMemset(x.data(), 0, 200) == cudaSuccess);
  CHECK_THAT(violation_of([&] { launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x.data(), 100); }),
             Contains("nothing has written") && Contains("byte 256 of"));
  // A copy passes on what is known; reading the copy is the error.
  const DeviceBuffer<float> z(100);
  REQUIRE(cudaMemcpy(z.data(), x.data(), 400, cudaMemcpyDeviceToDevice) == cudaSuccess);
  CHECK_THAT(violation_of([&] { z.read(); }), Contains("byte 200 of"));
}

TEST_CASE("misaligned wide accesses", "[accesses]") {
  const DeviceBuffer<float> x(std::vector<float>(100, 1.0f)), y(1);
  REQUIRE(launch(load_wide_kernel, 1, 1, 0, nullptr, y.data(), x.data(), 4) == cudaSuccess);
  CHECK_THAT(
      violation_of([&] { launch(load_wide_kernel, 1, 1, 0, nullptr, y.data(), x.data(), 5); }),
      Contains("misaligned access to 'const struct float4'") && Contains("checks_test.cu"));
  CHECK_THAT(
      violation_of([&] { launch(load_checked_kernel, 1, 1, 0, nullptr, y.data(), x.data(), 5); }),
      Contains("misaligned access") && Contains("8 bytes"));
}

TEST_CASE("shared memory: indices, sizes, values that nothing has written", "[accesses]") {
  const DeviceBuffer<float> y(1);
  REQUIRE(launch(table_kernel, 1, 32, 0, nullptr, y.data(), 31) == cudaSuccess);
  CHECK_THAT(violation_of([&] { launch(table_kernel, 1, 32, 0, nullptr, y.data(), 32); }),
             Contains("index 32 outside"));
  REQUIRE(launch(dynamic_kernel, 1, 1, 64, nullptr, y.data(), 15) == cudaSuccess);
  CHECK_THAT(violation_of([&] { launch(dynamic_kernel, 1, 1, 64, nullptr, y.data(), 16); }),
             Contains("outside the 64 bytes of dynamic shared memory"));
  REQUIRE(launch(unwritten_shared_kernel, 1, 1, 0, nullptr, y.data()) == cudaSuccess);
  CHECK(std::isnan(y.read()[0]));
}

TEST_CASE("host pointers in kernels", "[accesses]") {
  std::vector<float> host(32, 1.0f);
  const DeviceBuffer<float> y(32);
  CHECK_THAT(
      violation_of([&] { launch(copy_kernel, 1, 32, 0, nullptr, y.data(), host.data(), 32); }),
      Contains("a host pointer in a kernel"));
  CHECK_THAT(violation_of([&] {
               launch(copy_kernel, 1, 32, 0, nullptr, static_cast<float*>(nullptr), y.data(), 0);
             }),
             Contains(""));
  REQUIRE(cudaMemset(y.data(), 0, 128) == cudaSuccess);
  CHECK_THAT(violation_of([&] {
               launch(copy_kernel, 1, 32, 0, nullptr, static_cast<float*>(nullptr), y.data(), 1);
             }),
             Contains("null pointer"));
  // Pinned memory is the device's too.
  float* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, 128) == cudaSuccess);
  REQUIRE(launch(copy_kernel, 1, 32, 0, nullptr, pinned, y.data(), 32) == cudaSuccess);
  REQUIRE(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("host and device pointers in copies") {
  std::vector<float> host(32, 1.0f);
  const DeviceBuffer<float> x(host);
  const std::size_t bytes = 128;
  CHECK_THAT(
      violation_of([&] { cudaMemcpy(host.data(), host.data(), bytes, cudaMemcpyHostToDevice); }),
      Contains("a host pointer where device memory"));
  CHECK_THAT(violation_of([&] { cudaMemcpy(x.data(), x.data(), bytes, cudaMemcpyHostToDevice); }),
             Contains("a device pointer where a host pointer belongs"));
  CHECK_THAT(
      violation_of([&] { cudaMemcpy(host.data(), host.data(), bytes, cudaMemcpyDeviceToHost); }),
      Contains("a host pointer where device memory"));
  CHECK_THAT(
      violation_of([&] { cudaMemcpy(x.data() + 1, host.data(), bytes, cudaMemcpyHostToDevice); }),
      Contains("128 bytes at byte 4 of"));
  CHECK_THAT(
      violation_of([&] { cudaMemcpy(x.data(), x.data() + 1, 64, cudaMemcpyDeviceToDevice); }),
      Contains("overlapping"));
  CHECK_THAT(violation_of([&] { cudaMemset(host.data(), 0, bytes); }), Contains("a host pointer"));
  CHECK(cudaMemcpy(x.data(), host.data(), bytes, static_cast<cudaMemcpyKind>(6)) ==
        cudaErrorInvalidMemcpyDirection);
}

TEST_CASE("launch limits") {
  const DeviceBuffer<float> y(1);
  const auto launch_shape = [&](dim3 grid, dim3 block, std::size_t shared) {
    return launch(dynamic_kernel, grid, block, shared, nullptr, y.data(), 0);
  };
  CHECK(launch_shape(1, 1024, 4) == cudaSuccess);
  CHECK(launch_shape(1, 1025, 4) == cudaErrorInvalidConfiguration);
  CHECK_THAT(cudaGetErrorString(cudaErrorInvalidConfiguration),
             Contains("1024 threads") || Contains("1024 x"));
  CHECK(launch_shape(1, dim3(32, 32, 2), 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(1, dim3(1, 1, 65), 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(1, 0, 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(0, 1, 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(dim3(1, 0), 1, 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(dim3(1, 65536), 1, 4) == cudaErrorInvalidConfiguration);
  CHECK(launch_shape(dim3(1, 1, 65536), 1, 4) == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("shared memory needs an opt-in over 48 KiB and ends at the architecture's limit",
          "[accesses]") {
  const DeviceBuffer<float> y(1);
  const auto run = [&](std::size_t shared) {
    return launch(dynamic_kernel, 1, 1, shared, nullptr, y.data(), 0);
  };
  CHECK(run(48 << 10) == cudaSuccess);
  CHECK(run((48 << 10) + 4) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             228 << 10) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             227 << 10) == cudaSuccess);
  CHECK(run(227 << 10) == cudaSuccess);
  CHECK(run((227 << 10) + 4) == cudaErrorInvalidValue);
  const Hardware before = hardware();
  Hardware older = before;
  older.arch = 80;
  set_hardware(older);
  CHECK(cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             164 << 10) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             163 << 10) == cudaSuccess);
  set_hardware(before);
  // Static and dynamic shared memory count together.
  CHECK(launch(big_shared_kernel, 1, 1, 24 << 10, nullptr, y.data()) == cudaSuccess);
  CHECK(launch(big_shared_kernel, 1, 1, 25 << 10, nullptr, y.data()) == cudaErrorInvalidValue);
  cudaFuncAttributes attributes{};
  REQUIRE(cudaFuncGetAttributes(&attributes, big_shared_kernel) == cudaSuccess);
  CHECK(attributes.sharedSizeBytes == 24000);
}

TEST_CASE("divergent barriers") {
  for (const std::uint64_t schedule : {0, 1, 2, 3}) {
    const SeedScope scope(schedule);
    CHECK_THAT(message_of_launch(early_return_kernel), Contains("early_return_kernel") &&
                                                           Contains("divergent __syncthreads") &&
                                                           Contains("returned: thread (3, 0, 0)"));
    CHECK_THAT(message_of_launch(two_barriers_kernel),
               Contains("divergent __syncthreads") && Contains("others of the block wait at"));
    CHECK_THAT(message_of_launch(stuck_warp_kernel),
               Contains("no thread can go on") && Contains("thread (0, 0, 0)"));
  }
  // The emulation goes on after a fault.
  const DeviceBuffer<float> x(std::vector<float>(8, 3.0f)), y(8);
  REQUIRE(launch(copy_kernel, 1, 32, 0, nullptr, y.data(), x.data(), 8) == cudaSuccess);
  CHECK(y.read()[7] == 3.0f);
}

TEST_CASE("warp operations whose lanes do not agree") {
  const DeviceBuffer<int> y(64);
  CHECK_THAT(violation_of([&] { launch(absent_lane_kernel, 1, 16, 0, nullptr, y.data()); }),
             Contains("which does not take part"));
  CHECK_THAT(violation_of([&] { launch(wrong_mask_kernel, 1, 32, 0, nullptr, y.data()); }),
             Contains("is not in the mask"));
  CHECK_THAT(violation_of([&] { launch(mixed_warp_kernel, 1, 32, 0, nullptr, y.data()); }),
             Contains("different operations"));
}

TEST_CASE("locals of other threads, overflow, traps", "[accesses]") {
  const DeviceBuffer<int> y(1);
  CHECK_THAT(violation_of([&] { launch(foreign_local_kernel, 1, 2, 0, nullptr, y.data()); }),
             Contains("a host pointer in a kernel"));
  CHECK_THAT(violation_of([&] { launch(overflow_kernel, 1, 64, 0, nullptr, y.data(), 1 << 30); }),
             Contains("overflow of 'int'") && Contains("64 * 1073741824"));
  CHECK_THAT(message_of_launch(trap_kernel), Contains("__trap"));
}

TEST_CASE("pointers that a kernel finds in memory") {
  const DeviceBuffer<float> y(32);
  const DeviceBuffer<float*> pointers(std::vector<float*>{y.data()});
  REQUIRE(launch(indirect_kernel, 1, 32, 0, nullptr, static_cast<float* const*>(pointers.data()),
                 4) == cudaSuccess);
  CHECK(y.read()[31] == 4.0f);
}

TEST_CASE("a missing barrier shows under some schedule", "[accesses]") {
  int wrong = 0;
  for (std::uint64_t schedule = 0; schedule < 8; ++schedule) {
    const SeedScope scope(schedule);
    const DeviceBuffer<int> y(64);
    std::string message = violation_of([&] { launch(race_kernel, 1, 64, 0, nullptr, y.data()); });
    if (!message.empty() || y.read() != std::vector<int>(64, 5)) ++wrong;
  }
  CHECK(wrong > 0);
}
