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

// Threads that a loop may use.
std::int64_t max_threads();

using ChunkFunction = void (*)(const void* body, std::int64_t begin, std::int64_t end,
                               std::int64_t index);
void run_chunks(std::int64_t n, std::int64_t chunk, ChunkFunction function, const void* body);

// body(begin, end, index) for each chunk of [0, n), spread over the threads. The body must not
// throw.
template <class Body>
void for_chunks(std::int64_t n, std::int64_t chunk, const Body& body) {
  const auto call = [](const void* erased, std::int64_t begin, std::int64_t end,
                       std::int64_t index) {
    (*static_cast<const Body*>(erased))(begin, end, index);
  };
  run_chunks(n, chunk, call, &body);
}

}  // namespace openmoe::cpu
