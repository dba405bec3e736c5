// Adafactor (Shazeer and Stern 2018) in the fewest passes over memory, as in core/cpu: statistics
// from g and w; the size of the update from g; then the update itself. Between the passes small
// kernels finish the sums that blocks left behind, in f64. Ranks that share a matrix add up these
// sums after each of the first two passes, of all matrices of a stack at once.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/scratch_sizes.h"

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
// R and C are here, num_rows and num_columns of the whole matrix.
struct Tiling {
  std::int64_t R, C, tile_rows, row_tiles, col_tiles;
  double num_rows, num_columns;
};

Tiling tiling_of(std::int64_t R, std::int64_t C, const SharedMatrix* shared) {
  const std::int64_t tile_rows = std::max(kMinTileRows, ceil_div(R, kMaxRowTiles));
  const bool by_rows = shared != nullptr && shared->axis == SharedMatrix::Axis::rows;
  const bool by_columns = shared != nullptr && !by_rows;
  return {R,
          C,
          tile_rows,
          ceil_div(R, tile_rows),
          ceil_div(C, kTileColumns),
          static_cast<double>(by_rows ? shared->num_elements / C : R),
          static_cast<double>(by_columns ? shared->num_elements / R : C)};
}

// Everything a factored update leaves between its passes, per matrix of the stack.
struct FactoredSums {
  float* row_part;      // (stack, col_tiles, R): sums of g^2 along a row
  float* col_part;      // (stack, row_tiles, C): sums of g^2 along a column
  float* w_part;        // (stack, tiles): sums of w^2
  float* u_part;        // (stack, tiles): sums of u^2
  double* row_sum;      // (stack, row_blocks): sums of row
  float* col_factor;    // (stack, C): 1 / sqrt(col)
  double* row_mean;     // (stack)
  double* w_square;     // (stack)
  double* u_square;     // (stack)
  float* update_scale;  // (stack): factor of u in w -= factor * u
  // (stack, lines + 2), where ranks share the matrices: sums of g^2 along each line of the axis
  // that is not shared, of w^2 and, by rows, of row. Of the ranks here, then of all.
  double* exchanged;
};

// With decay 0, the first step, the old state is not read: it may hold anything.
__device__ inline float running_mean(const float* old_value, float fresh, float decay) {
  return decay == 0.0f ? fresh : decay * *old_value + (1.0f - decay) * fresh;
}

// The mean of g^2 along a line, from its sum over `count` elements.
__device__ inline float mean_square(double sum, double count, const AdafactorScalars& scalars) {
  return static_cast<float>(sum / count + static_cast<double>(scalars.epsilon_square));
}

// Sum over tiles of part (tiles, lines) for one line.
__device__ inline double line_sum(const float* part, std::int64_t tiles, std::int64_t lines,
                                  std::int64_t line) {
  double sum = 0.0;
  for (std::int64_t tile = 0; tile < tiles; ++tile)
    sum += static_cast<double>(part[tile * lines + line]);
  return sum;
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

// A thread per row. row_sum: what the rows of a block add up to. kShared: the sums along rows are
// those of all ranks.
template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    factored_rows_kernel(float* row, FactoredSums sums, AdafactorScalars scalars, Tiling tiling) {
  __shared__ double room[kWarp];
  const std::int64_t matrix = blockIdx.y, R = tiling.R,
                     r = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  float value = 0.0f;
  if (r < R) {
    const double sum =
        kShared ? sums.exchanged[matrix * (R + 2) + r]
                : line_sum(sums.row_part + matrix * tiling.col_tiles * R, tiling.col_tiles, R, r);
    float* const at = row + matrix * R + r;
    value = running_mean(at, mean_square(sum, tiling.num_columns, scalars), scalars.decay);
    *at = value;
  }
  const double total = block_sum(static_cast<double>(value), room);
  if (threadIdx.x == 0) sums.row_sum[matrix * gridDim.x + blockIdx.x] = total;
}

// A thread per column. kShared: the sums along columns are those of all ranks.
template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    factored_columns_kernel(float* col, FactoredSums sums, AdafactorScalars scalars,
                            Tiling tiling) {
  const std::int64_t matrix = blockIdx.y, C = tiling.C,
                     c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= C) return;
  const double sum =
      kShared ? sums.exchanged[matrix * (C + 2) + c]
              : line_sum(sums.col_part + matrix * tiling.row_tiles * C, tiling.row_tiles, C, c);
  float* const at = col + matrix * C + c;
  const float value = running_mean(at, mean_square(sum, tiling.num_rows, scalars), scalars.decay);
  *at = value;
  sums.col_factor[matrix * C + c] = 1.0f / sqrtf(value);
}

template <typename T>
__device__ inline double sum_of(const T* values, std::int64_t count, double* room) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads)
    sum += static_cast<double>(values[i]);
  return block_sum(sum, room);
}

// A thread per line: what this rank knows of the lines that all ranks have, (tiles, lines) per
// matrix.
__global__ void __launch_bounds__(kThreads)
    factored_lines_kernel(double* exchanged, const float* part, std::int64_t tiles,
                          std::int64_t lines) {
  const std::int64_t matrix = blockIdx.y,
                     line = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (line < lines)
    exchanged[matrix * (lines + 2) + line] =
        line_sum(part + matrix * tiles * lines, tiles, lines, line);
}

// Behind the `lines` lines of every matrix: the sums of w^2 and of row, the latter 0 where no rank
// needs it. A block per matrix.
__global__ void __launch_bounds__(kThreads)
    factored_totals_kernel(FactoredSums sums, Tiling tiling, std::int64_t row_blocks,
                           std::int64_t lines) {
  __shared__ double room[2][kWarp];
  const std::int64_t matrix = blockIdx.x, tiles = tiling.row_tiles * tiling.col_tiles;
  const double w_square = sum_of(sums.w_part + matrix * tiles, tiles, room[0]);
  const double row_sum = sum_of(sums.row_sum + matrix * row_blocks, row_blocks, room[1]);
  if (threadIdx.x != 0) return;
  sums.exchanged[matrix * (lines + 2) + lines] = w_square;
  sums.exchanged[matrix * (lines + 2) + lines + 1] = row_sum;
}

// What the passes over the whole matrix need of its statistics. `lines` < 0: nothing was exchanged.
// A block per matrix.
__global__ void __launch_bounds__(kThreads)
    factored_means_kernel(FactoredSums sums, Tiling tiling, std::int64_t row_blocks,
                          std::int64_t lines, bool shares_rows) {
  __shared__ double room[2][kWarp];
  const std::int64_t matrix = blockIdx.x, tiles = tiling.row_tiles * tiling.col_tiles;
  const double* const exchanged =
      lines < 0 ? nullptr : sums.exchanged + matrix * (lines + 2) + lines;
  double row_sum = sum_of(sums.row_sum + matrix * row_blocks, row_blocks, room[0]);
  double w_square = sum_of(sums.w_part + matrix * tiles, tiles, room[1]);
  if (threadIdx.x != 0) return;
  if (exchanged != nullptr) w_square = exchanged[0];
  if (shares_rows) row_sum = exchanged[1];
  sums.row_mean[matrix] = row_sum / tiling.num_rows;
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
    factored_size_sum_kernel(FactoredSums sums, Tiling tiling) {
  __shared__ double room[kWarp];
  const std::int64_t matrix = blockIdx.x, tiles = tiling.row_tiles * tiling.col_tiles;
  const double u_square = sum_of(sums.u_part + matrix * tiles, tiles, room);
  if (threadIdx.x == 0) sums.u_square[matrix] = u_square;
}

__global__ void __launch_bounds__(kThreads)
    factored_factor_kernel(FactoredSums sums, AdafactorScalars scalars, Tiling tiling,
                           std::int64_t stack) {
  for (std::int64_t i = global_thread(); i < stack; i += num_global_threads())
    sums.update_scale[i] = update_factor(scalars, sums.w_square[i], sums.u_square[i],
                                         tiling.num_rows * tiling.num_columns);
}

// kRounds: rounded becomes the new w in bf16
// hot: at least 4 blocks per SM
// bytes: 14 of 14 per element of g (12 without the rounded copy), 64 in flight per thread
template <int kWidth, bool kRounds>
__global__ void __launch_bounds__(kThreads, 4)
    factored_apply_kernel(float* w, __nv_bfloat16* rounded, FactoredSums sums, const float* row,
                          const float* g, Tiling tiling) {
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
      if constexpr (kRounds) store(rounded + (part.matrix * R + r) * C + c, weight);
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

// squares (2): the sums of w^2 and of u^2. One block.
__global__ void __launch_bounds__(kThreads)
    full_sums_kernel(double* squares, const float* w_part, const float* u_part,
                     std::int64_t blocks) {
  __shared__ double room[2][kWarp];
  const double w_square = sum_of(w_part, blocks, room[0]),
               u_square = sum_of(u_part, blocks, room[1]);
  if (threadIdx.x != 0) return;
  squares[0] = w_square;
  squares[1] = u_square;
}

// `size`: elements of the whole tensor.
__global__ void __launch_bounds__(kThreads)
    full_apply_kernel(float* w, const double* squares, const float* v, const float* g,
                      AdafactorScalars scalars, double size, std::int64_t n) {
  __shared__ float factor;
  if (threadIdx.x == 0) factor = update_factor(scalars, squares[0], squares[1], size);
  __syncthreads();
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads())
    w[i] -= factor * (g[i] / sqrtf(v[i]));
}

// `lines`: of the statistic that ranks share; -1: none.
FactoredSums take_factored_sums(ScratchCursor& cursor, std::int64_t stack, const Tiling& tiling,
                                std::int64_t lines) {
  const std::int64_t tiles = tiling.row_tiles * tiling.col_tiles;
  return {cursor.take<float>(stack * tiling.col_tiles * tiling.R),
          cursor.take<float>(stack * tiling.row_tiles * tiling.C),
          cursor.take<float>(stack * tiles),
          cursor.take<float>(stack * tiles),
          cursor.take<double>(stack * ceil_div(tiling.R, kThreads)),
          cursor.take<float>(stack * tiling.C),
          cursor.take<double>(stack),
          cursor.take<double>(stack),
          cursor.take<double>(stack),
          cursor.take<float>(stack),
          cursor.take<double>(stack * (lines + 2))};
}

struct FullScratch {
  float *w_part = nullptr, *u_part = nullptr;
  double* squares = nullptr;

  void take(ScratchCursor& cursor, std::int64_t blocks) {
    w_part = cursor.take<float>(blocks);
    u_part = cursor.take<float>(blocks);
    squares = cursor.take<double>(2);
  }
};

}  // namespace

std::int64_t adafactor_factored_scratch(std::int64_t stack, std::int64_t R, std::int64_t C) {
  return carved_bytes([&](ScratchCursor& cursor) {
    take_factored_sums(cursor, stack, tiling_of(R, C, nullptr), std::max(R, C));
  });
}

std::int64_t adafactor_full_scratch(std::int64_t n) {
  return carved_bytes([&](ScratchCursor& cursor) {
    FullScratch().take(cursor, std::min(kFullBlocks, ceil_div(n, kThreads)));
  });
}

}  // namespace cuda

void CudaOps::sum_over_ranks(double* values, std::int64_t count, const SharedMatrix& shared) {
  const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(double));
  double* const host = static_cast<double*>(pinned_.reserve(bytes));
  OPENMOE_CUDA(cudaMemcpyAsync(host, values, static_cast<std::size_t>(bytes),
                               cudaMemcpyDeviceToHost, stream_));
  OPENMOE_CUDA(cudaStreamSynchronize(stream_));
  shared.sum({host, static_cast<std::size_t>(count)});
  OPENMOE_CUDA(cudaMemcpyAsync(values, host, static_cast<std::size_t>(bytes),
                               cudaMemcpyHostToDevice, stream_));
}

// A rank that has nothing of a shared matrix takes part in its sums all the same.
void CudaOps::do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                                    const AdafactorScalars& scalars, const SharedMatrix* shared,
                                    Tensor rounded) {
  const std::int64_t stack = w.size(0), R = w.size(1), C = w.size(2);
  if (stack == 0 || (shared != nullptr ? shared->num_elements : R * C) == 0) return;
  wait_for_downloads();
  const cuda::Tiling tiling = cuda::tiling_of(R, C, shared);
  const bool shares_rows = shared != nullptr && shared->axis == SharedMatrix::Axis::rows;
  const bool shares_columns = shared != nullptr && !shares_rows;
  const std::int64_t tiles = tiling.row_tiles * tiling.col_tiles,
                     row_blocks = cuda::ceil_div(R, cuda::kThreads),
                     lines = shared == nullptr ? -1
                             : shares_rows     ? C
                                               : R;
  cuda::FactoredSums sums{};
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) {
    sums = cuda::take_factored_sums(cursor, stack, tiling, lines);
  });
  const auto by_line = [&](std::int64_t count) {
    return cuda::LaunchShape{.blocks = cuda::ceil_div(count, cuda::kThreads),
                             .threads = cuda::kThreads,
                             .blocks_y = stack};
  };
  const cuda::LaunchShape by_tile{.blocks = tiles, .threads = cuda::kThreads, .blocks_y = stack};
  const cuda::LaunchShape by_matrix{.blocks = stack, .threads = cuda::kThreads};
  const auto rows_kernel =
      shares_columns ? cuda::factored_rows_kernel<true> : cuda::factored_rows_kernel<false>;
  const auto columns_kernel =
      shares_rows ? cuda::factored_columns_kernel<true> : cuda::factored_columns_kernel<false>;
  const bool vectors = cuda::can_vectorise(4, C, w, g);
  float* const weight = w.as<float>();
  const float* const gradient = g.as<float>();

  cuda::with_width<4>(vectors, [&](auto width) {
    cuda::launch(stream_, by_tile, cuda::factored_statistics_kernel<width.value>, sums, weight,
                 gradient, tiling);
  });
  // By columns the row statistics need the sums of all ranks, by rows they go into them.
  if (!shares_columns)
    cuda::launch(stream_, by_line(R), rows_kernel, row.as<float>(), sums, scalars, tiling);
  if (shared != nullptr) {
    cuda::launch(stream_, by_line(lines), cuda::factored_lines_kernel, sums.exchanged,
                 shares_rows ? sums.col_part : sums.row_part,
                 shares_rows ? tiling.row_tiles : tiling.col_tiles, lines);
    cuda::launch(stream_, by_matrix, cuda::factored_totals_kernel, sums, tiling,
                 shares_rows ? row_blocks : 0, lines);
    sum_over_ranks(sums.exchanged, stack * (lines + 2), *shared);
  }
  if (shares_columns)
    cuda::launch(stream_, by_line(R), rows_kernel, row.as<float>(), sums, scalars, tiling);
  cuda::launch(stream_, by_line(C), columns_kernel, col.as<float>(), sums, scalars, tiling);
  cuda::launch(stream_, by_matrix, cuda::factored_means_kernel, sums, tiling, row_blocks, lines,
               shares_rows);

  cuda::with_width<4>(vectors, [&](auto width) {
    cuda::launch(stream_, by_tile, cuda::factored_size_kernel<width.value>, sums, row.as<float>(),
                 gradient, tiling);
  });
  cuda::launch(stream_, by_matrix, cuda::factored_size_sum_kernel, sums, tiling);
  if (shared != nullptr) sum_over_ranks(sums.u_square, stack, *shared);
  cuda::launch(stream_, cuda::blocks_for(stack, cuda::kThreads), cuda::factored_factor_kernel, sums,
               scalars, tiling, stack);
  // Without vectors a thread has no registers left for a third matrix.
  const bool rounds = rounded && vectors && cuda::can_vectorise(4, C, rounded);
  const auto apply = [&](auto kernel, __nv_bfloat16* copy) {
    cuda::launch(stream_, by_tile, kernel, weight, copy, sums, row.as<float>(), gradient, tiling);
  };
  if (rounds) return apply(cuda::factored_apply_kernel<4, true>, rounded.as<__nv_bfloat16>());
  cuda::with_width<4>(vectors, [&](auto width) {
    apply(cuda::factored_apply_kernel<width.value, false>, nullptr);
  });
  if (rounded) do_convert(rounded, w);
}

void CudaOps::do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                                const SharedMatrix* shared) {
  const std::int64_t n = w.num_elements(), whole = shared != nullptr ? shared->num_elements : n;
  if (whole == 0) return;
  wait_for_downloads();
  const std::int64_t blocks = std::min(cuda::kFullBlocks, cuda::ceil_div(n, cuda::kThreads));
  cuda::FullScratch work;
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) { work.take(cursor, blocks); });
  float *const w_part = work.w_part, *const u_part = work.u_part;
  double* const squares = work.squares;
  const cuda::LaunchShape shape{.blocks = blocks, .threads = cuda::kThreads};
  cuda::launch(stream_, shape, cuda::full_statistics_kernel, v.as<float>(), w_part, u_part,
               w.as<float>(), g.as<float>(), scalars, n);
  cuda::launch(stream_, {.blocks = 1, .threads = cuda::kThreads}, cuda::full_sums_kernel, squares,
               w_part, u_part, blocks);
  if (shared != nullptr) sum_over_ranks(squares, 2, *shared);
  cuda::launch(stream_, shape, cuda::full_apply_kernel, w.as<float>(), squares, v.as<float>(),
               g.as<float>(), scalars, static_cast<double>(whole), n);
}

}  // namespace openmoe
