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

}  // namespace openmoe::cuda
