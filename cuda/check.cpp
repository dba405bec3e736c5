#include "cuda/check.h"

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cuda {

void throw_cuda_fault(cudaError_t error, const char* call, const char* file, int line) {
  throw RuntimeFault(concat("CUDA: ", call, " failed: ", cudaGetErrorString(error), " (",
                            cudaGetErrorName(error), "), at ", file, ":", line,
                            error == cudaErrorMemoryAllocation
                                ? "; nvidia-smi lists what else uses the device, `openmoe plan` "
                                  "what this job needs"
                                : ""));
}

void throw_cublas_fault(cublasStatus_t status, const char* call, const char* file, int line) {
  throw RuntimeFault(concat("cuBLAS: ", call, " failed: ", cublasGetStatusString(status), " (",
                            cublasGetStatusName(status), "), at ", file, ":", line));
}

void throw_shared_memory_fault(std::int64_t wanted_bytes) {
  int device = 0, allowed = 0;
  OPENMOE_CUDA(cudaGetDevice(&device));
  OPENMOE_CUDA(cudaDeviceGetAttribute(&allowed, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  throw RuntimeFault(concat("CUDA: a kernel needs ", wanted_bytes,
                            " bytes of shared memory for each block, and device ", device, " has ",
                            allowed,
                            ". Those of sm_80 and sm_90 have enough for every recipe; on sm_86, "
                            "sm_89 and sm_12x attention needs run.compute_type=bf16 and "
                            "model.head_dim of at most 128"));
}

}  // namespace openmoe::cuda
