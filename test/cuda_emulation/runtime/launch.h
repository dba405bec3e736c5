// What the checks of memory need to know of the running launch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

// True when the address belongs to dynamic shared memory; `inside`: and to the part the launch
// asked for.
bool in_dynamic_shared(std::uintptr_t address, std::size_t bytes, bool* inside);
std::size_t dynamic_shared_bytes();
// Most shared memory of a block on this architecture.
std::size_t shared_limit();

}  // namespace cuda_emulation
