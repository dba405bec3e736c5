// Exclusive sums of integers by one block.
#pragma once

#include "cuda/device.cuh"

namespace openmoe::cuda {

// Exclusive sums over the block of one value per thread; `room` has 33 values, of which [32]
// becomes the total. Ends with a barrier.
__device__ inline int block_exclusive_sum(int value, int* room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  int inclusive = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(kFullWarp, inclusive, static_cast<unsigned>(offset));
    if (lane >= offset) inclusive += below;
  }
  if (lane == kWarp - 1) room[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    const int total = lane < warps ? room[lane] : 0;
    int sum = total;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int below = __shfl_up_sync(kFullWarp, sum, static_cast<unsigned>(offset));
      if (lane >= offset) sum += below;
    }
    room[lane] = sum - total;
    if (lane == kWarp - 1) room[kWarp] = sum;
  }
  __syncthreads();
  return room[warp] + inclusive - value;
}

// values (count) become their exclusive sums. All kThreads threads of one block; room has 33
// values.
template <int kThreads>
__device__ inline void scan_in_place(std::int32_t* values, std::int64_t count, int* room) {
  int carried = 0;
  for (std::int64_t begin = 0; begin < count; begin += kThreads) {
    const std::int64_t i = begin + threadIdx.x;
    const int below = block_exclusive_sum(i < count ? values[i] : 0, room);
    if (i < count) values[i] = carried + below;
    carried += room[kWarp];
    __syncthreads();
  }
}

}  // namespace openmoe::cuda
