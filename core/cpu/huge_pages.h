// Large blocks of memory on huge pages: touching fresh 4 KiB pages is several times slower than the
// memory itself.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

inline constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;

// Zero-filled memory that begins at a huge page, huge pages wanted when `bytes` fills at least one.
// Throws RuntimeFault when it cannot be had.
void* map_huge_pages(std::int64_t bytes);

// Gives back what map_huge_pages(bytes) returned.
void unmap_huge_pages(void* data, std::int64_t bytes);

[[noreturn]] void throw_out_of_memory(std::int64_t bytes);

}  // namespace openmoe::cpu
