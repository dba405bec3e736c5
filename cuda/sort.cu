// Radix sort, least significant digit first, four bits a pass: digits are counted per tile, the
// counts scanned, and the items placed. All integers, so the order of additions does not matter.
#include "cuda/sort.h"

#include <bit>

#include "core/base/check.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/scan.cuh"

namespace openmoe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 8;  // neighbours, per thread
constexpr int kTile = kThreads * kItems;
constexpr int kDigitBits = 4;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kScanThreads = 1024;

__device__ int digit_of(std::int32_t key, int shift) {
  return (key >> shift) & (kDigits - 1);
}

__global__ void iota_kernel(std::int32_t* order, std::int64_t n) {
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads())
    order[i] = static_cast<std::int32_t>(i);
}

// counts[digit * tiles + tile]
__global__ void __launch_bounds__(kThreads)
    count_kernel(std::int32_t* counts, const std::int32_t* keys, std::int64_t n, int shift) {
  __shared__ int count[kDigits];
  if (threadIdx.x < kDigits) count[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kTile;
  for (int i = static_cast<int>(threadIdx.x); i < kTile && begin + i < n; i += kThreads)
    atomicAdd(&count[digit_of(keys[begin + i], shift)], 1);
  __syncthreads();
  if (threadIdx.x < kDigits) counts[threadIdx.x * gridDim.x + blockIdx.x] = count[threadIdx.x];
}

// counts become their exclusive sums. One block.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(std::int32_t* counts, std::int64_t count) {
  __shared__ int room[kWarp + 1];
  scan_in_place<kScanThreads>(counts, count, room);
}

// Each thread counts the digits of its neighbouring items; sums over (digit, thread) give every
// item its place in the tile's part of its digit.
__global__ void __launch_bounds__(kThreads)
    place_kernel(std::int32_t* out_keys, std::int32_t* out_order, const std::int32_t* keys,
                 const std::int32_t* order, const std::int32_t* offsets, std::int64_t n,
                 int shift) {
  __shared__ int place[kDigits * kThreads];
  __shared__ int room[kWarp + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kTile + thread * kItems;
  for (int digit = 0; digit < kDigits; ++digit) place[digit * kThreads + thread] = 0;
  for (int i = 0; i < kItems && begin + i < n; ++i)
    ++place[digit_of(keys[begin + i], shift) * kThreads + thread];
  __syncthreads();

  int sum = 0;
  for (int i = 0; i < kDigits;
       ++i) {  // thread t scans the t-th sixteenth-of-a-digit row of the table
    const int value = place[thread * kDigits + i];
    place[thread * kDigits + i] = sum;
    sum += value;
  }
  const int below = block_exclusive_sum(sum, room);
  for (int i = 0; i < kDigits; ++i) place[thread * kDigits + i] += below;
  __syncthreads();

  // A digit's first place in the tile is that of thread 0, which no thread but thread 0 changes;
  // take it before anybody does.
  int first[kDigits];
#pragma unroll
  for (int digit = 0; digit < kDigits; ++digit) first[digit] = place[digit * kThreads];
  __syncthreads();
  for (int i = 0; i < kItems && begin + i < n; ++i) {
    const std::int32_t key = keys[begin + i];
    const int digit = digit_of(key, shift);
    int first_place = 0;
#pragma unroll
    for (int d = 0; d < kDigits; ++d)  // a register array allows no computed index
      if (d == digit) first_place = first[d];
    const int rank = place[digit * kThreads + thread]++ - first_place;
    const std::int64_t to =
        static_cast<std::int64_t>(
            offsets[static_cast<std::int64_t>(digit) * gridDim.x + blockIdx.x]) +
        rank;
    out_keys[to] = key;
    out_order[to] = order[begin + i];
  }
}

}  // namespace

std::int64_t sort_counts(std::int64_t n) {
  return kDigits * ceil_div(n, kTile);
}

int sort_keys(cudaStream_t stream, const SortBuffers& buffers, std::int64_t n, std::int64_t bound) {
  OPENMOE_CHECK(n <= 0x7fffffff && bound <= 0x7fffffff, n, " keys up to ", bound);
  const std::int64_t tiles = ceil_div(n, kTile);
  const LaunchShape shape{.blocks = tiles, .threads = kThreads};
  launch(stream, blocks_for(n, kThreads), iota_kernel, buffers.order[0], n);
  int from = 0;
  for (int shift = 0; (bound >> shift) > 0; shift += kDigitBits, from = 1 - from) {
    launch(stream, shape, count_kernel, buffers.counts, buffers.keys[from], n, shift);
    launch(stream, {.blocks = 1, .threads = kScanThreads}, scan_kernel, buffers.counts,
           kDigits * tiles);
    launch(stream, shape, place_kernel, buffers.keys[1 - from], buffers.order[1 - from],
           buffers.keys[from], buffers.order[from], buffers.counts, n, shift);
  }
  return from;
}

}  // namespace openmoe::cuda
