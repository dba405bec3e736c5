// The emulated side of cuda/platform.cuh: dynamic shared memory and wide accesses of a kernel that
// runs on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

// Ends the launch when `p` is not aligned to `alignment`.
void check_alignment(const void* p, std::size_t alignment);

}  // namespace cuda_emulation

namespace openmoe::cuda {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_emulation::dynamic_shared_memory());
}

template <typename Wide, typename T>
const Wide* checked_pointer(const T* p) {
  cuda_emulation::check_alignment(p, alignof(Wide));
  return reinterpret_cast<const Wide*>(p);
}
template <typename Wide, typename T>
Wide* checked_pointer(T* p) {
  cuda_emulation::check_alignment(p, alignof(Wide));
  return reinterpret_cast<Wide*>(p);
}

}  // namespace openmoe::cuda
