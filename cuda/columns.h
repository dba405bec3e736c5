// The second stage of sums over rows: partial sums that blocks left behind are added up per column.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace openmoe::cuda {

// Rows of partial sums that a first stage should leave, at most; each block covers an equal share
// of the rows.
inline constexpr std::int64_t kMaxPartials = 512;

// out[c] += sum over r < rows of partial[r * columns + c], in a fixed order.
void add_column_sums(cudaStream_t stream, float* out, const float* partial, std::int64_t rows,
                     std::int64_t columns);

}  // namespace openmoe::cuda
