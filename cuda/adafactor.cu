// Adafactor (Shazeer and Stern 2018) in the fewest passes over memory, as in core/cpu: statistics
// from g and w; the size of the update from g; then the update itself. Between the passes small
// kernels finish the sums that blocks left behind, in f64 where they make one number of many.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileColumns = 256;
// Row tiles of one matrix, at most; each covers at least kMinTileRows rows.
constexpr std::int64_t kMaxRowTiles = 256;
constexpr std::int64_t kMinTileRows = 64;
constexpr std::int64_t kFullBlocks = 512;

// A stack of matrices cut into tiles: grid x = row tile * col_tiles + column tile, grid y = matrix.
struct Tiling {
  std::int64_t R, C, tile_rows, row_tiles, col_tiles;
};

Tiling tiling_of(std::int64_t R, std::int64_t C) {
  const std::int64_t tile_rows = std::max(kMinTileRows, ceil_div(R, kMaxRowTiles));
  return {R, C, tile_rows, ceil_div(R, tile_rows), ceil_div(C, kTileColumns)};
}

// Everything a factored update leaves between its passes, per matrix of the stack.
struct FactoredSums {
  float* row_part;      // (stack, col_tiles, R): sums of g^2 along a row
  float* col_part;      // (stack, row_tiles, C): sums of g^2 along a column
  float* w_part;        // (stack, tiles): sums of w^2
  float* u_part;        // (stack, tiles): sums of u^2
  float* row_sum;       // (stack, row_blocks): sums of row
  float* col_factor;    // (stack, C): 1 / sqrt(col)
  double* row_mean;     // (stack)
  double* w_square;     // (stack)
  float* update_scale;  // (stack): factor of u in w -= factor * u
};

// With decay 0, the first step, the old state is not read: it may hold anything.
__device__ inline float running_mean(const float* old_value, float fresh, float decay) {
  return decay == 0.0f ? fresh : decay * *old_value + (1.0f - decay) * fresh;
}

__device__ inline float update_factor(const AdafactorScalars& scalars, double w_square,
                                      double u_square, double size) {
  const double rms_w = fmax(sqrt(w_square / size), static_cast<double>(scalars.epsilon_scale));
  const double clip =
      fmax(1.0, sqrt(u_square / size) / static_cast<double>(scalars.clip_threshold));
  return static_cast<float>(static_cast<double>(scalars.learning_rate) * rms_w / clip);
}

// This thread's part of a tile: a warp takes every kWarps-th row, a lane kTileColumns / 32 columns
// in vectors.
struct TilePart {
  __device__ explicit TilePart(const Tiling& tiling)
      : lane(static_cast<int>(threadIdx.x) % kWarp),
        warp(static_cast<int>(threadIdx.x) / kWarp),
        col_tile(blockIdx.x % tiling.col_tiles),
        row_tile(blockIdx.x / tiling.col_tiles),
        matrix(blockIdx.y),
        first_row(row_tile * tiling.tile_rows),
        end_row(first_row + tiling.tile_rows < tiling.R ? first_row + tiling.tile_rows : tiling.R),
        first_column(col_tile * kTileColumns) {}

  int lane, warp;
  std::int64_t col_tile, row_tile, matrix, first_row, end_row, first_column;
};

// hot: at least 4 blocks per SM
// bytes: 8 of 8 per element of g, 64 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    factored_statistics_kernel(FactoredSums sums, const float* w, const float* g, Tiling tiling) {
  constexpr int kChunks = kTileColumns / (kWarp * kWidth);
  __shared__ float columns[kWarps][kTileColumns];
  __shared__ float room[kWarp];
  const TilePart part(tiling);
  const std::int64_t R = tiling.R, C = tiling.C;
  float column_sum[kChunks][kWidth] = {};
  float w_square = 0.0f;
  for (std::int64_t r = part.first_row + part.warp; r < part.end_row; r += kWarps) {
    float row_sum = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const std::int64_t c = part.first_column + (chunk * kWarp + part.lane) * kWidth;
      if (c >= C) continue;
      float gradient[kWidth], weight[kWidth];
      load(gradient, g + (part.matrix * R + r) * C + c);
      load(weight, w + (part.matrix * R + r) * C + c);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float square = gradient[j] * gradient[j];
        row_sum += square;
        column_sum[chunk][j] += square;
        w_square += weight[j] * weight[j];
      }
    }
    row_sum = warp_sum(row_sum);
    if (part.lane == 0)
      sums.row_part[(part.matrix * tiling.col_tiles + part.col_tile) * R + r] = row_sum;
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      columns[part.warp][(chunk * kWarp + part.lane) * kWidth + j] = column_sum[chunk][j];
  w_square = block_sum(w_square, room);  // also the barrier before columns is read
  const std::int64_t c = part.first_column + threadIdx.x;
  if (c < C) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += columns[i][threadIdx.x];
    sums.col_part[(part.matrix * tiling.row_tiles + part.row_tile) * C + c] = sum;
  }
  if (threadIdx.x == 0) sums.w_part[part.matrix * gridDim.x + blockIdx.x] = w_square;
}

// A thread per row. row_sum: what the rows of a block add up to.
__global__ void __launch_bounds__(kThreads)
    factored_rows_kernel(float* row, FactoredSums sums, AdafactorScalars scalars, Tiling tiling) {
  __shared__ float room[kWarp];
  const std::int64_t matrix = blockIdx.y,
                     r = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  float value = 0.0f;
  if (r < tiling.R) {
    float sum = 0.0f;
    for (std::int64_t tile = 0; tile < tiling.col_tiles; ++tile)
      sum += sums.row_part[(matrix * tiling.col_tiles + tile) * tiling.R + r];
    float* const at = row + matrix * tiling.R + r;
    value = running_mean(at, sum / static_cast<float>(tiling.C) + scalars.epsilon_square,
                         scalars.decay);
    *at = value;
  }
  value = block_sum(value, room);
  if (threadIdx.x == 0) sums.row_sum[matrix * gridDim.x + blockIdx.x] = value;
}

// A thread per column.
__global__ void __launch_bounds__(kThreads)
    factored_columns_kernel(float* col, FactoredSums sums, AdafactorScalars scalars,
                            Tiling tiling) {
  const std::int64_t matrix = blockIdx.y,
                     c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= tiling.C) return;
  float sum = 0.0f;
  for (std::int64_t tile = 0; tile < tiling.row_tiles; ++tile)
    sum += sums.col_part[(matrix * tiling.row_tiles + tile) * tiling.C + c];
  float* const at = col + matrix * tiling.C + c;
  const float value =
      running_mean(at, sum / static_cast<float>(tiling.R) + scalars.epsilon_square, scalars.decay);
  *at = value;
  sums.col_factor[matrix * tiling.C + c] = 1.0f / sqrtf(value);
}

__device__ inline double sum_of(const float* values, std::int64_t count, double* room) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads)
    sum += static_cast<double>(values[i]);
  return block_sum(sum, room);
}

// A block per matrix.
__global__ void __launch_bounds__(kThreads)
    factored_means_kernel(FactoredSums sums, Tiling tiling, std::int64_t row_blocks) {
  __shared__ double room[2][kWarp];
  const std::int64_t matrix = blockIdx.x, tiles = tiling.row_tiles * tiling.col_tiles;
  const double row_sum = sum_of(sums.row_sum + matrix * row_blocks, row_blocks, room[0]);
  const double w_square = sum_of(sums.w_part + matrix * tiles, tiles, room[1]);
  if (threadIdx.x != 0) return;
  sums.row_mean[matrix] = row_sum / static_cast<double>(tiling.R);
  sums.w_square[matrix] = w_square;
}

// u = g sqrt(row_mean / row) / sqrt(col)
// hot: at least 4 blocks per SM
// bytes: 4 of 4 per element of g, 32 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    factored_size_kernel(FactoredSums sums, const float* row, const float* g, Tiling tiling) {
  constexpr int kChunks = kTileColumns / (kWarp * kWidth);
  __shared__ float room[kWarp];
  const TilePart part(tiling);
  const std::int64_t R = tiling.R, C = tiling.C;
  const float row_mean = static_cast<float>(sums.row_mean[part.matrix]);
  float factor[kChunks][kWidth] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const std::int64_t c = part.first_column + (chunk * kWarp + part.lane) * kWidth;
    if (c < C) load(factor[chunk], sums.col_factor + part.matrix * C + c);
  }
  float u_square = 0.0f;
  for (std::int64_t r = part.first_row + part.warp; r < part.end_row; r += kWarps) {
    float square = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const std::int64_t c = part.first_column + (chunk * kWarp + part.lane) * kWidth;
      if (c >= C) continue;
      float gradient[kWidth];
      load(gradient, g + (part.matrix * R + r) * C + c);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float u = gradient[j] * factor[chunk][j];
        square += u * u;
      }
    }
    u_square += row_mean / row[part.matrix * R + r] * square;
  }
  u_square = block_sum(u_square, room);
  if (threadIdx.x == 0) sums.u_part[part.matrix * gridDim.x + blockIdx.x] = u_square;
}

// A block per matrix.
__global__ void __launch_bounds__(kThreads)
    factored_factor_kernel(FactoredSums sums, AdafactorScalars scalars, Tiling tiling) {
  __shared__ double room[kWarp];
  const std::int64_t matrix = blockIdx.x, tiles = tiling.row_tiles * tiling.col_tiles;
  const double u_square = sum_of(sums.u_part + matrix * tiles, tiles, room);
  if (threadIdx.x == 0)
    sums.update_scale[matrix] =
        update_factor(scalars, sums.w_square[matrix], u_square,
                      static_cast<double>(tiling.R) * static_cast<double>(tiling.C));
}

// hot: at least 4 blocks per SM
// bytes: 12 of 12 per element of g, 64 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    factored_apply_kernel(float* w, FactoredSums sums, const float* row, const float* g,
                          Tiling tiling) {
  constexpr int kChunks = kTileColumns / (kWarp * kWidth);
  const TilePart part(tiling);
  const std::int64_t R = tiling.R, C = tiling.C;
  const float row_mean = static_cast<float>(sums.row_mean[part.matrix]),
              scale = sums.update_scale[part.matrix];
  float factor[kChunks][kWidth] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const std::int64_t c = part.first_column + (chunk * kWarp + part.lane) * kWidth;
    if (c < C) load(factor[chunk], sums.col_factor + part.matrix * C + c);
  }
  for (std::int64_t r = part.first_row + part.warp; r < part.end_row; r += kWarps) {
    const float row_factor = scale * sqrtf(row_mean / row[part.matrix * R + r]);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const std::int64_t c = part.first_column + (chunk * kWarp + part.lane) * kWidth;
      if (c >= C) continue;
      float gradient[kWidth], weight[kWidth];
      load(gradient, g + (part.matrix * R + r) * C + c);
      load(weight, w + (part.matrix * R + r) * C + c);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) weight[j] -= row_factor * (gradient[j] * factor[chunk][j]);
      store(w + (part.matrix * R + r) * C + c, weight);
    }
  }
}

// v = running mean of g^2; partial sums of w^2 and of u^2 = g^2 / v.
__global__ void __launch_bounds__(kThreads)
    full_statistics_kernel(float* v, float* w_part, float* u_part, const float* w, const float* g,
                           AdafactorScalars scalars, std::int64_t n) {
  __shared__ float room[2][kWarp];
  float w_square = 0.0f, u_square = 0.0f;
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads()) {
    const float square = g[i] * g[i];
    const float second = running_mean(v + i, square + scalars.epsilon_square, scalars.decay);
    v[i] = second;
    w_square += w[i] * w[i];
    u_square += square / second;
  }
  w_square = block_sum(w_square, room[0]);
  u_square = block_sum(u_square, room[1]);
  if (threadIdx.x != 0) return;
  w_part[blockIdx.x] = w_square;
  u_part[blockIdx.x] = u_square;
}

__global__ void __launch_bounds__(kThreads)
    full_factor_kernel(float* factor, const float* w_part, const float* u_part,
                       AdafactorScalars scalars, std::int64_t blocks, std::int64_t n) {
  __shared__ double room[2][kWarp];
  const double w_square = sum_of(w_part, blocks, room[0]),
               u_square = sum_of(u_part, blocks, room[1]);
  if (threadIdx.x == 0)
    *factor = update_factor(scalars, w_square, u_square, static_cast<double>(n));
}

__global__ void __launch_bounds__(kThreads)
    full_apply_kernel(float* w, const float* factor, const float* v, const float* g,
                      std::int64_t n) {
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads())
    w[i] -= *factor * (g[i] / sqrtf(v[i]));
}

}  // namespace
}  // namespace cuda

void CudaOps::do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                                    const AdafactorScalars& scalars, const SharedMatrix* shared) {
  OPENMOE_CHECK(shared == nullptr, "a matrix shared by devices");
  const std::int64_t stack = w.size(0), R = w.size(1), C = w.size(2);
  if (w.num_elements() == 0) return;
  const cuda::Tiling tiling = cuda::tiling_of(R, C);
  const std::int64_t tiles = tiling.row_tiles * tiling.col_tiles,
                     row_blocks = cuda::ceil_div(R, cuda::kThreads);
  cuda::FactoredSums sums{};
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) {
    sums = {cursor.take<float>(stack * tiling.col_tiles * R),
            cursor.take<float>(stack * tiling.row_tiles * C),
            cursor.take<float>(stack * tiles),
            cursor.take<float>(stack * tiles),
            cursor.take<float>(stack * row_blocks),
            cursor.take<float>(stack * C),
            cursor.take<double>(stack),
            cursor.take<double>(stack),
            cursor.take<float>(stack)};
  });
  const cuda::LaunchShape by_tile{.blocks = tiles, .threads = cuda::kThreads, .blocks_y = stack};
  const cuda::LaunchShape by_row{
      .blocks = row_blocks, .threads = cuda::kThreads, .blocks_y = stack};
  const cuda::LaunchShape by_column{
      .blocks = cuda::ceil_div(C, cuda::kThreads), .threads = cuda::kThreads, .blocks_y = stack};
  const cuda::LaunchShape by_matrix{.blocks = stack, .threads = cuda::kThreads};
  cuda::with_width<4>(cuda::can_vectorise(4, C, w, g), [&](auto width) {
    constexpr int kWidth = width.value;
    float* const weight = w.as<float>();
    const float* const gradient = g.as<float>();
    cuda::launch(stream_, by_tile, cuda::factored_statistics_kernel<kWidth>, sums, weight, gradient,
                 tiling);
    cuda::launch(stream_, by_row, cuda::factored_rows_kernel, row.as<float>(), sums, scalars,
                 tiling);
    cuda::launch(stream_, by_column, cuda::factored_columns_kernel, col.as<float>(), sums, scalars,
                 tiling);
    cuda::launch(stream_, by_matrix, cuda::factored_means_kernel, sums, tiling, row_blocks);
    cuda::launch(stream_, by_tile, cuda::factored_size_kernel<kWidth>, sums, row.as<float>(),
                 gradient, tiling);
    cuda::launch(stream_, by_matrix, cuda::factored_factor_kernel, sums, scalars, tiling);
    cuda::launch(stream_, by_tile, cuda::factored_apply_kernel<kWidth>, weight, sums,
                 row.as<float>(), gradient, tiling);
  });
}

void CudaOps::do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                                const SharedMatrix* shared) {
  OPENMOE_CHECK(shared == nullptr, "a matrix shared by devices");
  const std::int64_t n = w.num_elements();
  if (n == 0) return;
  const std::int64_t blocks = std::min(cuda::kFullBlocks, cuda::ceil_div(n, cuda::kThreads));
  float *w_part = nullptr, *u_part = nullptr, *factor = nullptr;
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) {
    w_part = cursor.take<float>(blocks);
    u_part = cursor.take<float>(blocks);
    factor = cursor.take<float>(1);
  });
  const cuda::LaunchShape shape{.blocks = blocks, .threads = cuda::kThreads};
  cuda::launch(stream_, shape, cuda::full_statistics_kernel, v.as<float>(), w_part, u_part,
               w.as<float>(), g.as<float>(), scalars, n);
  cuda::launch(stream_, {.blocks = 1, .threads = cuda::kThreads}, cuda::full_factor_kernel, factor,
               w_part, u_part, scalars, blocks, n);
  cuda::launch(stream_, shape, cuda::full_apply_kernel, w.as<float>(), factor, v.as<float>(),
               g.as<float>(), n);
}

}  // namespace openmoe
