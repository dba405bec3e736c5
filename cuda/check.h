// One check per library: a call that fails becomes a RuntimeFault with the call's text, the
// library's words and the place. CUDA reports faults of kernels late, so the call named may be a
// later one; CUDA_LAUNCH_BLOCKING=1 finds the guilty one.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace openmoe::cuda {

[[noreturn]] void throw_cuda_fault(cudaError_t error, const char* call, const char* file, int line);
[[noreturn]] void throw_cublas_fault(cublasStatus_t status, const char* call, const char* file,
                                     int line);
// Of the current device, where a block of a kernel asks for more of it than there is.
[[noreturn]] void throw_shared_memory_fault(std::int64_t wanted_bytes);

}  // namespace openmoe::cuda

#define OPENMOE_CUDA(call)                                                         \
  do {                                                                             \
    const cudaError_t openmoe_error = (call);                                      \
    if (openmoe_error != cudaSuccess)                                              \
      ::openmoe::cuda::throw_cuda_fault(openmoe_error, #call, __FILE__, __LINE__); \
  } while (false)

#define OPENMOE_CUBLAS(call)                                                          \
  do {                                                                                \
    const cublasStatus_t openmoe_status = (call);                                     \
    if (openmoe_status != CUBLAS_STATUS_SUCCESS)                                      \
      ::openmoe::cuda::throw_cublas_fault(openmoe_status, #call, __FILE__, __LINE__); \
  } while (false)
