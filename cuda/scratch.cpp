#include "cuda/scratch.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"

namespace openmoe::cuda {

Scratch::~Scratch() {
  if (data_ != nullptr) cudaFree(data_);
}

void* Scratch::reserve(std::int64_t bytes) {
  if (bytes <= capacity_bytes_) return data_;
  // cudaFree waits for the kernels that still use the old block.
  if (data_ != nullptr) OPENMOE_CUDA(cudaFree(data_));
  data_ = nullptr;
  capacity_bytes_ = 0;
  const std::int64_t wanted = std::max<std::int64_t>(bytes, std::int64_t{1} << 20);
  const cudaError_t error = cudaMalloc(&data_, static_cast<std::size_t>(wanted));
  if (error != cudaSuccess) {
    data_ = nullptr;
    throw RuntimeFault(concat("cannot allocate ", wanted,
                              " bytes of device scratch memory: ", cudaGetErrorString(error)));
  }
  capacity_bytes_ = wanted;
  return data_;
}

PinnedScratch::~PinnedScratch() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

void* PinnedScratch::reserve(std::int64_t bytes) {
  if (bytes <= capacity_bytes_) return data_;
  if (data_ != nullptr) {
    OPENMOE_CUDA(cudaStreamSynchronize(stream_));
    OPENMOE_CUDA(cudaFreeHost(data_));
  }
  data_ = nullptr;
  capacity_bytes_ = 0;
  const std::int64_t wanted = std::max<std::int64_t>(bytes, std::int64_t{1} << 16);
  const cudaError_t error = cudaMallocHost(&data_, static_cast<std::size_t>(wanted));
  if (error != cudaSuccess) {
    data_ = nullptr;
    throw RuntimeFault(
        concat("cannot pin ", wanted, " bytes of host memory: ", cudaGetErrorString(error)));
  }
  capacity_bytes_ = wanted;
  return data_;
}

}  // namespace openmoe::cuda
