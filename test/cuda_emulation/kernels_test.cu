// What kernels may use: indices, shared memory, warp operations, atomics, bf16, under several
// schedules.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <numeric>
#include <vector>

#include "test/cuda_emulation/device_access.h"
#include "test/cuda_emulation/emulation.h"
#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"

using namespace cuda_emulation::test;

namespace {

__device__ inline float warp_sum(float v) {
  for (int m = 16; m > 0; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
  return v;
}

__global__ void row_norm(const float* __restrict__ x, float* y, int width) {
  __shared__ float part[32];
  const float* row = x + static_cast<std::int64_t>(blockIdx.x) * width;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x))
    sum += row[i] * row[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0.0f;
  sum = warp_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = rsqrtf(sum / static_cast<float>(width));
}

template <typename T>
__global__ void reverse_block(T* x) {
  T* copy = openmoe::cuda::dynamic_shared<T>();
  const unsigned int at = blockIdx.x * blockDim.x + threadIdx.x;
  copy[threadIdx.x] = x[at];
  __syncthreads();
  x[at] = copy[blockDim.x - 1 - threadIdx.x];
}

__global__ void indices(int* out) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      static_cast<int>(block * 1000 + thread);
}

__global__ void warp_functions(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* mine = out + threadIdx.x * 12;
  mine[0] = __shfl_sync(0xffffffffu, lane * 3, 5);
  mine[1] = __shfl_up_sync(0xffffffffu, lane, 2);
  mine[2] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
  mine[3] = __shfl_xor_sync(0xffffffffu, lane, 9);
  mine[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  mine[5] = __any_sync(0xffffffffu, lane == 31);
  mine[6] = __all_sync(0xffffffffu, lane < 31);
  mine[7] = __reduce_add_sync(0xffffffffu, lane);
  mine[8] = __reduce_max_sync(0xffffffffu, lane ^ 5);
  mine[9] = static_cast<int>(__match_any_sync(0xffffffffu, lane / 8));
  // Half warps on their own.
  mine[10] =
      lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
  mine[11] = __syncthreads_count(threadIdx.x % 2 == 0);
}

__global__ void histogram(const int* keys, int* counts, int n) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x))
    atomicAdd(&counts[keys[i]], 1);
}

__global__ void widen(const __nv_bfloat16* x, float4* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const uint2 raw = *openmoe::cuda::checked_pointer<uint2>(x + 4 * i);
  const auto half = [](unsigned int bits, int place) {
    return __bfloat162float(
        __ushort_as_bfloat16(static_cast<unsigned short>(bits >> (16 * place))));
  };
  y[i] = make_float4(half(raw.x, 0), half(raw.x, 1), half(raw.y, 0), half(raw.y, 1));
}

std::vector<float> numbers(std::size_t n) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f;
  return x;
}

}  // namespace

TEST_CASE("a reduction over a block gives the same under every schedule") {
  const int rows = 37, width = 301;
  const auto x = numbers(rows * width);
  for (const std::uint64_t seed : {0, 1, 2, 3, 17}) {
    const SeedScope scope(seed);
    const DeviceBuffer<float> in(x), out(rows);
    REQUIRE(launch(row_norm, rows, 128, 0, nullptr, in.data(), out.data(), width) == cudaSuccess);
    const auto y = out.read();
    for (int row = 0; row < rows; ++row) {
      double sum = 0;
      for (int i = 0; i < width; ++i) sum += double(x[row * width + i]) * x[row * width + i];
      CHECK(y[row] == Approx(1 / std::sqrt(sum / width)).epsilon(1e-5));
    }
  }
}

TEST_CASE("dynamic shared memory is one per block") {
  for (const std::uint64_t seed : {0, 5, 6}) {
    const SeedScope scope(seed);
    std::vector<int> x(8 * 96);
    std::iota(x.begin(), x.end(), 0);
    const DeviceBuffer<int> buffer(x);
    REQUIRE(launch(reverse_block<int>, 8, 96, 96 * sizeof(int), nullptr, buffer.data()) ==
            cudaSuccess);
    const auto y = buffer.read();
    for (int i = 0; i < 8 * 96; ++i) CHECK(y[i] == i / 96 * 96 + 95 - i % 96);
  }
}

TEST_CASE("indices in three dimensions") {
  const SeedScope scope(3);
  const DeviceBuffer<int> out(2 * 3 * 4 * 5 * 2 * 3);
  REQUIRE(launch(indices, dim3(2, 3, 4), dim3(5, 2, 3), 0, nullptr, out.data()) == cudaSuccess);
  const auto y = out.read();
  for (int i = 0; i < static_cast<int>(y.size()); ++i) CHECK(y[i] == i / 30 * 1000 + i % 30);
}

TEST_CASE("warp operations") {
  for (const std::uint64_t seed : {0, 1, 2, 3, 4}) {
    const SeedScope scope(seed);
    const DeviceBuffer<int> out(64 * 12);
    REQUIRE(launch(warp_functions, 1, 64, 0, nullptr, out.data()) == cudaSuccess);
    const auto y = out.read();
    for (int thread = 0; thread < 64; ++thread) {
      const int lane = thread % 32;
      const int* mine = &y[thread * 12];
      CHECK(mine[0] == 15);
      CHECK(mine[1] == (lane < 2 ? lane : lane - 2));
      CHECK(mine[2] == (lane % 8 + 3 < 8 ? lane + 3 : lane));
      CHECK(mine[3] == (lane ^ 9));
      CHECK(mine[4] == 0x49249249);
      CHECK(mine[5] == 1);
      CHECK(mine[6] == 0);
      CHECK(mine[7] == 496);
      CHECK(mine[8] == 31);
      CHECK(static_cast<unsigned int>(mine[9]) == 0xffu << (lane / 8 * 8));
      CHECK(mine[10] == (lane < 16 ? lane ^ 1 : lane ^ 2));
      CHECK(mine[11] == 32);
    }
  }
}

TEST_CASE("integer atomics add up") {
  const SeedScope scope(9);
  std::vector<int> keys(1000);
  for (int i = 0; i < 1000; ++i) keys[i] = i * i % 7;
  const DeviceBuffer<int> in(keys), out(std::vector<int>(7, 0));
  REQUIRE(launch(histogram, 3, 64, 0, nullptr, in.data(), out.data(), 1000) == cudaSuccess);
  const auto counts = out.read();
  for (int key = 0; key < 7; ++key) CHECK(counts[key] == std::count(keys.begin(), keys.end(), key));
}

TEST_CASE("bf16 in vectors") {
  std::vector<__nv_bfloat16> x;
  for (const float v : numbers(40)) x.push_back(__float2bfloat16(v));
  const DeviceBuffer<__nv_bfloat16> in(x);
  const DeviceBuffer<float4> out(10);
  REQUIRE(launch(widen, 1, 32, 0, nullptr, in.data(), out.data(), 10) == cudaSuccess);
  const auto y = out.read();
  for (int i = 0; i < 10; ++i) {
    CHECK(y[i].x == __bfloat162float(x[4 * i]));
    CHECK(y[i].w == __bfloat162float(x[4 * i + 3]));
  }
}

TEST_CASE("bf16 rounds to nearest, ties to even") {
  CHECK(__bfloat162float(__float2bfloat16(1.0f + 1.0f / 256)) == 1.0f);
  CHECK(__bfloat162float(__float2bfloat16(1.0f + 3.0f / 256)) == 1.0f + 4.0f / 256);
  CHECK(__bfloat162float(__float2bfloat16(-1.0f - 1.1f / 256)) == -1.0f - 2.0f / 256);
  CHECK(__bfloat16_as_ushort(__float2bfloat16(3.4e38f)) == 0x7f80);
  CHECK(__hisnan(__float2bfloat16(NAN)));
}
