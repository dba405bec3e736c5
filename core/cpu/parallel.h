// Loops over chunks whose bounds do not depend on the number of threads, which is what keeps
// results independent of it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace openmoe::cpu {

// Elements that one chunk of an element-wise loop should have: enough to hide the cost of starting
// it.
inline constexpr std::int64_t kChunkElements = 16384;

// Rows of `width` that make about one such chunk.
inline std::int64_t chunk_rows(std::int64_t width) {
  return std::max<std::int64_t>(1, kChunkElements / std::max<std::int64_t>(1, width));
}

inline std::int64_t num_chunks(std::int64_t n, std::int64_t chunk) {
  return (n + chunk - 1) / chunk;
}

// body(begin, end, index) for each chunk of [0, n), spread over the threads. The body must not
// throw.
template <class Body>
void for_chunks(std::int64_t n, std::int64_t chunk, const Body& body) {
  const std::int64_t count = num_chunks(n, chunk);
#pragma omp parallel for schedule(static) if (count > 1)
  for (std::int64_t index = 0; index < count; ++index)
    body(index * chunk, std::min(n, (index + 1) * chunk), index);
}

}  // namespace openmoe::cpu
