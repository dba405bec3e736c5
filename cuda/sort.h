// A stable sort of integers on the device, for ops that must add up what shares a destination in a
// fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace openmoe::cuda {

// Scratch of one sort of n keys.
struct SortBuffers {
  std::int32_t* keys[2];   // (n) each
  std::int32_t* order[2];  // (n) each
  std::int32_t* counts;    // (sort_counts(n))
};
std::int64_t sort_counts(std::int64_t n);

// Sorts the n keys in buffers.keys[0], which are in [0, bound], ascending; equal keys keep their
// order. Returns the index i such that buffers.keys[i] holds the sorted keys and buffers.order[i]
// where each one was.
int sort_keys(cudaStream_t stream, const SortBuffers& buffers, std::int64_t n, std::int64_t bound);

}  // namespace openmoe::cuda
