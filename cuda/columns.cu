#include "cuda/columns.h"

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace openmoe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A lane per column; the warps of a block share the rows.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of partial, 4 in flight per thread
__global__ void __launch_bounds__(kThreads)
    add_column_sums_kernel(float* out, const float* partial, std::int64_t rows,
                           std::int64_t columns) {
  __shared__ float sums[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0.0f;
  if (column < columns)
    for (std::int64_t row = warp; row < rows; row += kWarps) sum += partial[row * columns + column];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int i = 1; i < kWarps; ++i) sum += sums[i][lane];
  out[column] += sum;
}

}  // namespace

void add_column_sums(cudaStream_t stream, float* out, const float* partial, std::int64_t rows,
                     std::int64_t columns) {
  launch(stream, {.blocks = ceil_div(columns, kWarp), .threads = kThreads}, add_column_sums_kernel,
         out, partial, rows, columns);
}

}  // namespace openmoe::cuda
