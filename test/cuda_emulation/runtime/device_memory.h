// Device memory: allocations, their addresses, and the checks of whole ranges that API calls make.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "test/cuda_emulation/runtime/access.h"

namespace cuda_emulation {

struct Allocation {
  std::uintptr_t begin = 0;  // in the first mapping
  std::size_t bytes = 0;
  int device = 0;
  std::int64_t number = 0;  // counts allocations of the process
  bool live = true;
};

namespace device_memory {

// True for addresses of either mapping.
inline bool contains(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) - g_access.base < 2 * kSpaceBytes &&
         g_access.base != 0;
}
inline std::uintptr_t offset_of(std::uintptr_t address) {
  return (address - g_access.base) & (kSpaceBytes - 1);
}

// The accessible twin of a device address.
void* host_view(const void* p);

// nullptr when the device is full.
void* allocate(std::size_t bytes, int device);
void release(const Allocation& allocation);
// The allocation that starts at p, or nullptr.
const Allocation* starting_at(const void* p);
// The live or freed allocation p points into or just behind, or nullptr.
const Allocation* around(const void* p);
std::size_t used_bytes(int device);
std::size_t live_bytes();
std::int64_t num_allocations();

// For kernels that find device addresses in memory instead of among their arguments.
void set_first_mapping_accessible(bool accessible);

// "12 bytes behind the 400 bytes of allocation 7", for messages.
std::string describe(const void* p);

// Ends the program's call when [p, p + bytes) is not inside one live allocation of `device`.
void check_range(const void* p, std::size_t bytes, int device, const char* what);

// The running operation reads or writes a range: bounds, initialisation and order, as check_read.
void read_range(const void* p, std::size_t bytes, int device, const char* what,
                bool may_be_uninitialised = false);
void write_range(const void* p, std::size_t bytes, int device, const char* what);
// Copies what is known about initialisation from one range to another, as a copy between two places
// of a device does.
void copy_range(const void* dst, const void* src, std::size_t bytes);

}  // namespace device_memory
}  // namespace cuda_emulation
