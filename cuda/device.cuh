// What kernels share: element types, vector loads and stores, sums over a warp or a block. All sums
// run in a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"
#include "cuda/platform.cuh"

namespace openmoe::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// kWidth neighbouring elements, moved by as few instructions as their alignment allows: at most 16
// bytes each.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T at[kWidth];
};

// p must be aligned to a Pack.
template <int kWidth, typename T>
__device__ inline void load(float (&out)[kWidth], const T* p) {
  const Pack<T, kWidth> pack = *checked_pointer<Pack<T, kWidth>>(p);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = to_float(pack.at[i]);
}
template <int kWidth, typename T>
__device__ inline void store(T* p, const float (&values)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.at[i] = from_float<T>(values[i]);
  *checked_pointer<Pack<T, kWidth>>(p) = pack;
}

// Every lane gets the sum of the warp, the same bits in each.
template <typename T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}

// Every thread gets the sum over the block. blockDim.x is a multiple of 32; `room` has 32 values in
// shared memory and may be used again after the next __syncthreads.
template <typename T>
__device__ inline T block_sum(T value, T* room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_sum(value);
  if (lane == 0) room[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? room[lane] : T(0));
}

// This thread's number in a one-dimensional grid, and the number of threads in it.
__device__ inline std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t num_global_threads() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace openmoe::cuda
