// Host memory that a device reaches by itself (pinned), and copies to it that the host may not look
// at yet.
#pragma once

#include <cstddef>
#include <cstdint>

#include "test/cuda_emulation/runtime/streams.h"

namespace cuda_emulation::host_memory {

void* allocate_pinned(std::size_t bytes);
bool free_pinned(void* p);  // false when p is not the start of pinned memory of this kind
bool register_pinned(void* p, std::size_t bytes);
bool unregister_pinned(void* p);
bool is_pinned(const void* p, std::size_t bytes);

// A copy that arrives in pinned memory when the host has waited for the operation; until then the
// place holds 0xff.
void deliver_later(void* dst, const void* bytes, std::size_t size, const Operation& operation);
// A copy out of pinned memory: the host must leave it unchanged until it has waited for the
// operation.
void keep_unchanged(const void* src, std::size_t size, const Operation& operation);
// The running operation is about to read pinned memory: what is ordered before it arrives first.
void settle_for_running(const void* p, std::size_t size);
// The host has waited: deliver and check all that its clock covers.
void settle(const Clock& clock);

}  // namespace cuda_emulation::host_memory
