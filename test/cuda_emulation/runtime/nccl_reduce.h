// Element types and reductions of NCCL.
#pragma once

#include <cstddef>

#include "nccl.h"

namespace cuda_emulation {

std::size_t nccl_bytes(ncclDataType_t type);  // of an element; 0: not emulated

// result[i] = parts[0][i] op parts[1][i] op ..., `num_parts` arrays of n elements, `stride_bytes`
// apart. Every step is rounded to the type, as where each rank adds its part and passes the sum on.
void nccl_reduce(void* result, const void* parts, int num_parts, std::size_t stride_bytes,
                 std::size_t n, ncclDataType_t type, ncclRedOp_t op);

}  // namespace cuda_emulation
