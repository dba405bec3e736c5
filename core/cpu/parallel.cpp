#include "core/cpu/parallel.h"

#include <omp.h>

namespace openmoe::cpu {

std::int64_t max_threads() {
  return omp_get_max_threads();
}

void run_chunks(std::int64_t n, std::int64_t chunk, ChunkFunction function, const void* body) {
  const std::int64_t count = num_chunks(n, chunk);
#pragma omp parallel for schedule(static) if (count > 1)
  for (std::int64_t index = 0; index < count; ++index)
    function(body, index * chunk, std::min(n, (index + 1) * chunk), index);
}

}  // namespace openmoe::cpu
