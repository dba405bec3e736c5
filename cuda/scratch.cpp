#include "cuda/scratch.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"

namespace openmoe::cuda {

Scratch::~Scratch() {
  if (is_own_ && data_ != nullptr) cudaFree(data_);
}

void Scratch::release() {
  // cudaFree waits for the kernels that still use the block.
  if (is_own_ && data_ != nullptr) OPENMOE_CUDA(cudaFree(data_));
  data_ = nullptr;
  is_own_ = true;
  capacity_bytes_ = 0;
}

void Scratch::use(void* data, std::int64_t bytes) {
  release();
  if (data == nullptr) return;
  data_ = data;
  is_own_ = false;
  capacity_bytes_ = bytes;
}

void* Scratch::reserve(std::int64_t bytes) {
  if (bytes <= capacity_bytes_) return data_;
  release();
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
