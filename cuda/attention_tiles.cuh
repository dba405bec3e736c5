// Pieces of the portable attention kernels: tiles of rows in shared memory, in f32, and products of
// them on 16 x 16 threads. Thread (tx, ty) = (thread % 16, thread / 16) owns rows ty, ty + 16, ...
// and columns tx, tx + 16, ... of every product.
#pragma once

#include <cmath>

#include "cuda/device.cuh"

namespace openmoe::cuda {

inline constexpr int kAttentionThreads = 256;
inline constexpr int kSide = 16;

// Rows of one head of a (B, T, H, Dh) tensor.
struct HeadRows {
  std::int64_t first;       // element of (b, 0, h, 0)
  std::int64_t row_stride;  // H * Dh
  std::int64_t T;
  int head_dim;  // Dh
  bool vectors;  // rows can be moved four elements at a time
};

// Tile rows hold kHeadDim >= Dh values, the rest 0, and four more that keep the threads on
// different banks.
template <int kHeadDim>
inline constexpr int kTileStride = kHeadDim + 4;

// tile[r] = row first_row + r, zero beyond the sequence. All threads of the block.
template <int kRows, int kHeadDim, typename T>
__device__ inline void load_tile(float* tile, const T* data, const HeadRows& head,
                                 std::int64_t first_row) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * (kHeadDim / 4); i += kAttentionThreads) {
    const int r = i / (kHeadDim / 4), d = i % (kHeadDim / 4) * 4;
    const std::int64_t row = first_row + r;
    float value[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row < head.T) {
      const T* const at = data + head.first + row * head.row_stride + d;
      if (head.vectors) {
        if (d < head.head_dim) load(value, at);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (d + j < head.head_dim) value[j] = to_float(at[j]);
      }
    }
    store(tile + r * kTileStride<kHeadDim> + d, value);
  }
}

// Segment ids of rows, 0 beyond the sequence.
template <int kRows>
__device__ inline void load_segments(int* tile, const std::int32_t* segment_ids, std::int64_t T,
                                     std::int64_t first_row) {
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kAttentionThreads)
    tile[r] = first_row + r < T ? segment_ids[first_row + r] : 0;
}

// Smallest and largest id above 0 of a tile; every warp finds them for itself.
struct SegmentRange {
  int low, high;
};
template <int kRows>
__device__ inline SegmentRange segment_range(const int* tile) {
  SegmentRange range{INT32_MAX, 0};
  for (int r = static_cast<int>(threadIdx.x) % kWarp; r < kRows; r += kWarp)
    if (tile[r] > 0) {
      range.low = min(range.low, tile[r]);
      range.high = max(range.high, tile[r]);
    }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    range.low = min(range.low, __shfl_xor_sync(kFullWarp, range.low, offset));
    range.high = max(range.high, __shfl_xor_sync(kFullWarp, range.high, offset));
  }
  return range;
}
__device__ inline bool overlap(const SegmentRange& a, const SegmentRange& b) {
  return a.low <= b.high && b.low <= a.high;
}

// product[i][j] = <row ty + 16 i of a, row tx + 16 j of b>
template <int kHeadDim, int kRows, int kColumns>
__device__ inline void row_products(float (&product)[kRows][kColumns], const float* a,
                                    const float* b) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) product[i][j] = 0.0f;
#pragma unroll 4
  for (int d = 0; d < kHeadDim; d += 4) {
    float left[kRows][4], right[kColumns][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) load(left[i], a + (ty + kSide * i) * kTileStride<kHeadDim> + d);
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      load(right[j], b + (tx + kSide * j) * kTileStride<kHeadDim> + d);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) product[i][j] += left[i][k] * right[j][k];
  }
}

// sum[i][j] += sum over k < kDepth of weights[ty + 16 i][k] * tile[k][tx + 16 j]; weights have rows
// of kStride values.
template <int kHeadDim, int kDepth, int kStride, int kRows, int kColumns>
__device__ inline void add_weighted_rows(float (&sum)[kRows][kColumns], const float* weights,
                                         const float* tile) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    float weight[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) weight[i] = weights[(ty + kSide * i) * kStride + k];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float value = tile[k * kTileStride<kHeadDim> + tx + kSide * j];
#pragma unroll
      for (int i = 0; i < kRows; ++i) sum[i][j] += weight[i] * value;
    }
  }
}

// The same with the weights read by column: sum[i][j] += sum over k of weights[k][ty + 16 i] *
// tile[k][tx + 16 j].
template <int kHeadDim, int kDepth, int kStride, int kRows, int kColumns>
__device__ inline void add_weighted_rows_transposed(float (&sum)[kRows][kColumns],
                                                    const float* weights, const float* tile) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    float weight[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) weight[i] = weights[k * kStride + ty + kSide * i];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float value = tile[k * kTileStride<kHeadDim> + tx + kSide * j];
#pragma unroll
      for (int i = 0; i < kRows; ++i) sum[i][j] += weight[i] * value;
    }
  }
}

// Row ty + 16 i, columns tx + 16 j of a result, times factor, into rows first_row + ... of a head.
template <int kRows, int kColumns, typename T>
__device__ inline void store_rows(T* data, const HeadRows& head, std::int64_t first_row,
                                  const float (&value)[kRows][kColumns],
                                  const float (&factor)[kRows]) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = first_row + ty + kSide * i;
    if (row >= head.T) continue;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (tx + kSide * j < head.head_dim)
        data[head.first + row * head.row_stride + tx + kSide * j] =
            from_float<T>(value[i][j] * factor[i]);
  }
}

// Maximum and sum over the 16 threads that share a row.
__device__ inline float row_max(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}
__device__ inline float row_sum(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

}  // namespace openmoe::cuda
