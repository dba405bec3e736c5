// Pieces of the tensor-core attention kernels: tiles of bf16 rows in shared memory, and products of
// a warp's 16 rows with them.
#pragma once

#include <cmath>

#include "cuda/attention_tiles.cuh"
#include "cuda/tensor_core.cuh"

namespace openmoe::cuda {

inline constexpr int kMmaThreads = 128;
inline constexpr int kMmaWarps = kMmaThreads / kWarp;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// Rows are 16 bytes longer than their data, which puts the eight rows of a matrix on different
// banks.
template <int kHeadDim>
inline constexpr int kMmaStride = kHeadDim + 8;

// tile[r] = row first_row + r, zero beyond the sequence and beyond the head's width. All threads of
// the block.
template <int kRows, int kHeadDim>
__device__ inline void load_mma_tile(__nv_bfloat16* tile, const __nv_bfloat16* data,
                                     const HeadRows& head, std::int64_t first_row) {
  constexpr int kChunks = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kMmaThreads) {
    const int r = i / kChunks, d = i % kChunks * 8;
    const std::int64_t row = first_row + r;
    Pack<__nv_bfloat16, 8> value;
#pragma unroll
    for (int j = 0; j < 8; ++j) value.at[j] = __float2bfloat16_rn(0.0f);
    if (row < head.T) {
      const __nv_bfloat16* const at = data + head.first + row * head.row_stride + d;
      if (head.vectors) {
        if (d < head.head_dim) value = *checked_pointer<Pack<__nv_bfloat16, 8>>(at);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (d + j < head.head_dim) value.at[j] = at[j];
      }
    }
    *checked_pointer<Pack<__nv_bfloat16, 8>>(tile + r * kMmaStride<kHeadDim> + d) = value;
  }
}

template <int kRows>
__device__ inline void load_mma_segments(int* tile, const std::int32_t* segment_ids, std::int64_t T,
                                         std::int64_t first_row) {
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kMmaThreads)
    tile[r] = first_row + r < T ? segment_ids[first_row + r] : 0;
}

// a = rows [16], columns [16 k, 16 k + 16) of `rows`, as the A operand.
template <int kHeadDim>
__device__ inline void load_a(unsigned (&a)[4], const __nv_bfloat16* rows, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  load_matrices(a, rows + lane % 16 * kMmaStride<kHeadDim> + 16 * k + lane / 16 * 8);
}

// product[n] (16, 8) = <row of `rows`, row 8 n + column of `tile`> over the head's width: rows
// (16), tile (8 kTiles).
template <int kHeadDim, int kTiles>
__device__ inline void mma_row_products(float (&product)[kTiles][4], const __nv_bfloat16* rows,
                                        const __nv_bfloat16* tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) product[n][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    unsigned a[4];
    load_a<kHeadDim>(a, rows, k);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      // Two tiles of 8 rows, each in two halves of 8 columns.
      unsigned b[4];
      load_matrices(b, tile + (8 * n + lane / 16 * 8 + lane % 8) * kMmaStride<kHeadDim> + 16 * k +
                           lane / 8 % 2 * 8);
      multiply_add(product[n], a, b[0], b[1]);
      multiply_add(product[n + 1], a, b[2], b[3]);
    }
  }
}

__device__ inline unsigned pack_pair(float low, float high) {
  const unsigned lower = __bfloat16_as_ushort(__float2bfloat16_rn(low)),
                 upper = __bfloat16_as_ushort(__float2bfloat16_rn(high));
  return upper << 16 | lower;
}

// Two numbers in two pairs of bf16: 0 rounded, 1 what the rounding took. Together 16 bits of each.
__device__ inline unsigned part_of_pair(int part, float low, float high) {
  const unsigned rounded = pack_pair(low, high);
  if (part == 0) return rounded;
  return pack_pair(low - __int_as_float(static_cast<int>(rounded << 16)),
                   high - __int_as_float(static_cast<int>(rounded & 0xffff0000u)));
}

// sum (16, kHeadDim) += weights (16, 8 kTiles) tile (8 kTiles, kHeadDim); the weights are a
// product's result. They enter with 16 bits: rounded to 8, as fused attention often has them, the
// gradients would be off by more than their own rounding.
template <int kHeadDim, int kTiles>
__device__ inline void mma_add_weighted_rows(float (&sum)[kHeadDim / 8][4],
                                             const float (&weights)[kTiles][4],
                                             const __nv_bfloat16* tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) {
    // Where a result has its pairs is where an A operand wants them.
    // Rounded, then what the rounding took: one after the other, since registers are short.
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      unsigned a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = part_of_pair(part, weights[2 * k + i / 2][i % 2 * 2],
                            weights[2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        // Two tiles of 8 columns, each in two halves of 8 rows.
        unsigned b[4];
        load_matrices_transposed(
            b, tile + (16 * k + lane % 16) * kMmaStride<kHeadDim> + 8 * n + lane / 16 * 8);
        multiply_add(sum[n], a, b[0], b[1]);
        multiply_add(sum[n + 1], a, b[2], b[3]);
      }
    }
  }
}

// Rows g and g + 8 of a warp's result, times a factor each, into rows first_row + ... of a head.
template <int kHeadDim>
__device__ inline void store_mma_rows(__nv_bfloat16* data, const HeadRows& head,
                                      std::int64_t first_row, const float (&value)[kHeadDim / 8][4],
                                      const float (&factor)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = first_row + lane / 4 + 8 * half;
    if (row >= head.T) continue;
    __nv_bfloat16* const at = data + head.first + row * head.row_stride;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int d = 8 * n + lane % 4 * 2;
      const float low = value[n][2 * half] * factor[half],
                  high = value[n][2 * half + 1] * factor[half];
      if (head.vectors) {
        if (d < head.head_dim) *checked_pointer<unsigned>(at + d) = pack_pair(low, high);
      } else {
        if (d < head.head_dim) at[d] = __float2bfloat16_rn(low);
        if (d + 1 < head.head_dim) at[d + 1] = __float2bfloat16_rn(high);
      }
    }
  }
}

// Maximum and sum over the four lanes that share a row.
__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, 1));
  return fmaxf(value, __shfl_xor_sync(kFullWarp, value, 2));
}
__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(kFullWarp, value, 1);
  return value + __shfl_xor_sync(kFullWarp, value, 2);
}

}  // namespace openmoe::cuda
