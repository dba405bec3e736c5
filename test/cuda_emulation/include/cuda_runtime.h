// The CUDA language and runtime for a host compiler: keywords, built-in variables, launches and
// device functions. A .cu file includes this instead of the toolkit's header of the same name when
// it is compiled for the tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after another, so that one static copy serves every block. The tag marks the
// variable in the symbol table: the runtime finds it there, counts its bytes against the limit and
// fills it with a pattern before each block.
#define __shared__ static __attribute__((abi_tag("emulated_shared")))

#include "cuda_runtime_api.h"
#include "emulation/atomics.h"
#include "emulation/math.h"
#include "emulation/thread.h"
#include "emulation/warp.h"
#include "vector_types.h"

namespace cuda_emulation {

inline constexpr std::size_t kMaxParameterBytes = 32764;

// Runs `invoke(arguments)` once per thread of the grid, on `bytes` of arguments that are copied
// first.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const void* arguments,
                   std::size_t bytes, void (*invoke)(const void*));
cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t function_attributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t max_active_blocks(int* blocks, const void* kernel, int block_size,
                              std::size_t shared_bytes);

}  // namespace cuda_emulation

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...),
                "kernel parameters are copied bit by bit");
  static_assert((sizeof(Params) + ... + 0) <= cuda_emulation::kMaxParameterBytes,
                "too many bytes of parameters");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  };
  const Call call{kernel, std::tuple<Params...>(static_cast<Params>(std::forward<Args>(args))...)};
  return cuda_emulation::launch(*config, reinterpret_cast<const void*>(kernel), &call, sizeof call,
                                [](const void* copy) {
                                  const Call& copied = *static_cast<const Call*>(copy);
                                  std::apply(copied.kernel, copied.arguments);
                                });
}

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                 int value) {
  return cuda_emulation::set_function_attribute(reinterpret_cast<const void*>(kernel), attribute,
                                                value);
}
template <typename... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Params...)) {
  return cuda_emulation::function_attributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...),
                                                          int block_size,
                                                          std::size_t shared_bytes) {
  return cuda_emulation::max_active_blocks(blocks, reinterpret_cast<const void*>(kernel),
                                           block_size, shared_bytes);
}

// The typed forms of the allocation calls.
template <typename T>
cudaError_t cudaMalloc(T** pointer, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}
template <typename T>
cudaError_t cudaMallocAsync(T** pointer, std::size_t bytes, cudaStream_t stream) {
  return cudaMallocAsync(reinterpret_cast<void**>(pointer), bytes, stream);
}
template <typename T>
cudaError_t cudaMallocHost(T** pointer, std::size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(pointer), bytes);
}
template <typename T>
cudaError_t cudaHostAlloc(T** pointer, std::size_t bytes, unsigned int flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(pointer), bytes, flags);
}
