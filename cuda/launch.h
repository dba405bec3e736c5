// The one way kernels are launched: cudaLaunchKernelEx, an ordinary function, so that the same
// sources also compile for the host against the emulation of the tests.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "core/base/check.h"
#include "cuda/check.h"

namespace openmoe::cuda {

// Shared memory a block may have without asking for more.
inline constexpr std::int64_t kDefaultSharedBytes = 48 << 10;
// Grids are cut at this many blocks; every kernel strides over what is left.
inline constexpr std::int64_t kMaxBlocks = 1 << 20;

inline constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

struct LaunchShape {
  std::int64_t blocks = 0;  // x; 0: there is nothing to do
  int threads = 256;
  std::int64_t shared_bytes = 0;
  std::int64_t blocks_y = 1;  // at most 65535
  std::int64_t blocks_z = 1;  // at most 65535
};

// A block per `per_block` items, at most kMaxBlocks.
inline LaunchShape blocks_for(std::int64_t items, std::int64_t per_block, int threads = 256,
                              std::int64_t shared_bytes = 0) {
  const std::int64_t blocks = ceil_div(items, per_block);
  return {blocks < kMaxBlocks ? blocks : kMaxBlocks, threads, shared_bytes};
}

// Enqueues kernel(args...). An empty grid, which CUDA calls an error, is nothing to do.
template <typename... Params, typename... Args>
void launch(cudaStream_t stream, const LaunchShape& shape, void (*kernel)(Params...),
            Args&&... args) {
  if (shape.blocks == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return;
  OPENMOE_CHECK(shape.blocks <= 0x7fffffff && shape.blocks_y <= 65535 && shape.blocks_z <= 65535,
                "grid of ", shape.blocks, " x ", shape.blocks_y, " x ", shape.blocks_z);
  if (shape.shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error == cudaErrorInvalidValue) throw_shared_memory_fault(shape.shared_bytes);
    OPENMOE_CUDA(error);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.blocks_y),
                        static_cast<unsigned>(shape.blocks_z));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream;
  OPENMOE_CUDA(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

}  // namespace openmoe::cuda
