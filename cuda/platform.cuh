// The two things that a kernel cannot write the same way for a device and for the host emulation of
// the tests.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#ifdef OPENMOE_CUDA_EMULATION
#include "test/cuda_emulation/device_access.h"
#else

namespace openmoe::cuda {

// The block's dynamic shared memory, aligned to 128 bytes.
template <typename T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char openmoe_dynamic_shared[];
  return reinterpret_cast<T*>(openmoe_dynamic_shared);
}

// p as a pointer to a wider type; the emulation checks that it is aligned as the device demands.
template <typename Wide, typename T>
__device__ inline const Wide* checked_pointer(const T* p) {
  return reinterpret_cast<const Wide*>(p);
}
template <typename Wide, typename T>
__device__ inline Wide* checked_pointer(T* p) {
  return reinterpret_cast<Wide*>(p);
}

}  // namespace openmoe::cuda

#endif
