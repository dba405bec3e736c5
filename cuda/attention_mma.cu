// Causal attention within segments on tensor cores: bf16 operands, f32 softmax and accumulation
// (Dao 2023, FlashAttention-2). A warp owns 16 queries (or, for dk and dv, 16 keys) and keeps their
// results and weights in registers; a block of four warps shares the tiles of the other side.
#include "cuda/attention_mma.cuh"
#include "cuda/attention_shapes.h"
#include "cuda/launch.h"

namespace openmoe::cuda {
namespace {

constexpr int kOwned = 16 * kMmaWarps;  // rows of a block
constexpr int kKeys = 64;               // walked over by queries
template <int kHeadDim>
constexpr int kQueries =
    kHeadDim <= 64 ? 64 : 32;  // walked over by keys; more do not fit in the registers

using Element = __nv_bfloat16;

struct Place {
  std::int64_t tile, h, b;
};
__device__ inline Place place_of(const AttentionShape& shape, bool reverse) {
  const std::int64_t heads = shape.B * shape.H, tiles = (shape.T + kOwned - 1) / kOwned;
  const std::int64_t tile = blockIdx.x / heads, head = blockIdx.x % heads;
  return {reverse ? tiles - 1 - tile : tile, head % shape.H, head / shape.H};
}
__device__ inline HeadRows head_rows(const AttentionShape& shape, const Place& at) {
  return {at.b * shape.T * shape.H * shape.Dh + at.h * shape.Dh, shape.H * shape.Dh, shape.T,
          static_cast<int>(shape.Dh), shape.vectors};
}

template <int kHeadDim>
constexpr std::int64_t forward_bytes() {
  return (kOwned + 2 * kKeys) * kMmaStride<kHeadDim> * 2 + (kOwned + kKeys) * 4;
}

// hot <64>: at least 4 blocks per SM, with 28160 bytes of dynamic shared memory
// hot <128>: at least 2 blocks per SM, with 52736 bytes of dynamic shared memory
// bytes: 8 of 8 per element of o (T 2048), 64 more from L2
// flops: 4096 of 4096 per element of o (tensor cores)
template <int kHeadDim>
__global__ void __launch_bounds__(kMmaThreads)
    mma_forward_kernel(Element* o, float* log_z, const Element* q, const Element* k,
                       const Element* v, const std::int32_t* segment_ids, AttentionShape shape) {
  constexpr int kTiles = kKeys / 8;
  Element* const q_tile = dynamic_shared<Element>();
  Element* const k_tile = q_tile + kOwned * kMmaStride<kHeadDim>;
  Element* const v_tile = k_tile + kKeys * kMmaStride<kHeadDim>;
  int* const q_segment = reinterpret_cast<int*>(v_tile + kKeys * kMmaStride<kHeadDim>);
  int* const k_segment = q_segment + kOwned;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const Place at = place_of(shape, true);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = segment_ids + at.b * shape.T;
  const std::int64_t first_query = at.tile * kOwned;
  load_mma_tile<kOwned, kHeadDim>(q_tile, q, head, first_query);
  load_mma_segments<kOwned>(q_segment, segments, shape.T, first_query);
  __syncthreads();
  const SegmentRange q_range = segment_range<kOwned>(q_segment);
  const int row[2] = {16 * warp + lane / 4, 16 * warp + lane / 4 + 8};  // of the block's tile
  const int segment[2] = {q_segment[row[0]], q_segment[row[1]]};
  const float scale = shape.scale * kLog2E;

  float out[kHeadDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  for (std::int64_t first_key = 0; first_key < first_query + kOwned && first_key < shape.T;
       first_key += kKeys) {
    __syncthreads();  // the tiles before have been used
    load_mma_segments<kKeys>(k_segment, segments, shape.T, first_key);
    __syncthreads();
    if (!overlap(q_range, segment_range<kKeys>(k_segment))) continue;
    load_mma_tile<kKeys, kHeadDim>(k_tile, k, head, first_key);
    load_mma_tile<kKeys, kHeadDim>(v_tile, v, head, first_key);
    __syncthreads();
    float p[kTiles][4];
    mma_row_products<kHeadDim>(p, q_tile + 16 * warp * kMmaStride<kHeadDim>, k_tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = largest[half];
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = 8 * n + lane % 4 * 2 + j;
          const bool seen = segment[half] > 0 && segment[half] == k_segment[key] &&
                            first_key + key <= first_query + row[half];
          float& weight = p[n][2 * half + j];
          weight = seen ? weight * scale : -INFINITY;
          top = fmaxf(top, weight);
        }
      top = quad_max(top);
      const float shift = top == -INFINITY ? 0.0f : top;  // a row that has seen nothing yet
      const float keep = exp2f(largest[half] - shift);
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& weight = p[n][2 * half + j];
          weight = exp2f(weight - shift);
          total += weight;
        }
      sum[half] = sum[half] * keep + quad_sum(total);
      largest[half] = top;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) out[n][2 * half + j] *= keep;
    }
    mma_add_weighted_rows<kHeadDim>(out, p, v_tile);
  }

  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t position = first_query + row[half];
    factor[half] = segment[half] > 0 ? 1.0f / sum[half] : 0.0f;
    if (lane % 4 == 0 && position < shape.T)
      log_z[(at.b * shape.H + at.h) * shape.T + position] =
          segment[half] > 0 ? (largest[half] + log2f(sum[half])) * kLn2 : 0.0f;
  }
  store_mma_rows<kHeadDim>(o, head, first_query + 16 * warp, out, factor);
}

// With P = exp(scale q k^T - log_z) and dP = d_o v^T: dS = P (dP - delta), dq = scale dS k, dk =
// scale dS^T q, dv = P^T d_o.
struct BackwardArgs {
  Element *dq, *dk, *dv;
  const Element *d_o, *q, *k, *v;
  const std::int32_t* segment_ids;
  const float *log_z, *delta;  // (B, H, T)
  AttentionShape shape;
};

template <int kHeadDim>
constexpr std::int64_t dq_bytes() {
  return (2 * kOwned + 2 * kKeys) * kMmaStride<kHeadDim> * 2 + (kOwned + kKeys) * 4;
}

// hot <64>: at least 2 blocks per SM, with 37376 bytes of dynamic shared memory
// hot <128>: at least 2 blocks per SM, with 70144 bytes of dynamic shared memory
// bytes: 10 of 10 per element of dq (T 2048), 64 more from L2
// flops: 6144 of 2048 per element of dq (tensor cores; the scores are computed again)
template <int kHeadDim>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_dq_kernel(BackwardArgs args) {
  constexpr int kTiles = kKeys / 8, kStride = kMmaStride<kHeadDim>;
  Element* const q_tile = dynamic_shared<Element>();
  Element* const d_o_tile = q_tile + kOwned * kStride;
  Element* const k_tile = d_o_tile + kOwned * kStride;
  Element* const v_tile = k_tile + kKeys * kStride;
  int* const q_segment = reinterpret_cast<int*>(v_tile + kKeys * kStride);
  int* const k_segment = q_segment + kOwned;
  const AttentionShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const Place at = place_of(shape, true);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = args.segment_ids + at.b * shape.T;
  const std::int64_t first_query = at.tile * kOwned, statistics = (at.b * shape.H + at.h) * shape.T;
  load_mma_tile<kOwned, kHeadDim>(q_tile, args.q, head, first_query);
  load_mma_tile<kOwned, kHeadDim>(d_o_tile, args.d_o, head, first_query);
  load_mma_segments<kOwned>(q_segment, segments, shape.T, first_query);
  __syncthreads();
  const SegmentRange q_range = segment_range<kOwned>(q_segment);
  const int row[2] = {16 * warp + lane / 4, 16 * warp + lane / 4 + 8};
  const int segment[2] = {q_segment[row[0]], q_segment[row[1]]};
  const float scale = shape.scale * kLog2E;
  float shift[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool inside = first_query + row[half] < shape.T;
    shift[half] = inside ? args.log_z[statistics + first_query + row[half]] * kLog2E : 0.0f;
    delta[half] = inside ? args.delta[statistics + first_query + row[half]] : 0.0f;
  }

  float dq[kHeadDim / 8][4] = {};
  for (std::int64_t first_key = 0; first_key < first_query + kOwned && first_key < shape.T;
       first_key += kKeys) {
    __syncthreads();  // the tiles before have been used
    load_mma_segments<kKeys>(k_segment, segments, shape.T, first_key);
    __syncthreads();
    if (!overlap(q_range, segment_range<kKeys>(k_segment))) continue;
    load_mma_tile<kKeys, kHeadDim>(k_tile, args.k, head, first_key);
    load_mma_tile<kKeys, kHeadDim>(v_tile, args.v, head, first_key);
    __syncthreads();
    float p[kTiles][4], ds[kTiles][4];
    mma_row_products<kHeadDim>(p, q_tile + 16 * warp * kStride, k_tile);
    mma_row_products<kHeadDim>(ds, d_o_tile + 16 * warp * kStride, v_tile);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, key = 8 * n + lane % 4 * 2 + i % 2;
        const bool seen = segment[half] > 0 && segment[half] == k_segment[key] &&
                          first_key + key <= first_query + row[half];
        const float weight = seen ? exp2f(p[n][i] * scale - shift[half]) : 0.0f;
        ds[n][i] = weight * (ds[n][i] - delta[half]);
      }
    mma_add_weighted_rows<kHeadDim>(dq, ds, k_tile);
  }
  const float factor[2] = {shape.scale, shape.scale};
  store_mma_rows<kHeadDim>(args.dq, head, first_query + 16 * warp, dq, factor);
}

template <int kHeadDim>
constexpr std::int64_t dkv_bytes() {
  return (2 * kOwned + 2 * kQueries<kHeadDim>)*kMmaStride<kHeadDim> * 2 +
         (kOwned + 3 * kQueries<kHeadDim>)*4;
}

// Everything transposed: a warp's rows are keys, the columns of its products queries.
// hot <64>: at least 2 blocks per SM, with 37888 bytes of dynamic shared memory
// hot <128>: at least 2 blocks per SM, with 52864 bytes of dynamic shared memory
// bytes: 12 of 12 per element of dk (T 2048), 64 more from L2
// flops: 8192 of 8192 per element of dk (tensor cores)
template <int kHeadDim>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_dkv_kernel(BackwardArgs args) {
  constexpr int kWalked = kQueries<kHeadDim>, kTiles = kWalked / 8, kStride = kMmaStride<kHeadDim>;
  Element* const k_tile = dynamic_shared<Element>();
  Element* const v_tile = k_tile + kOwned * kStride;
  Element* const q_tile = v_tile + kOwned * kStride;
  Element* const d_o_tile = q_tile + kWalked * kStride;
  int* const k_segment = reinterpret_cast<int*>(d_o_tile + kWalked * kStride);
  int* const q_segment = k_segment + kOwned;
  float* const shift = reinterpret_cast<float*>(q_segment + kWalked);
  float* const delta = shift + kWalked;
  const AttentionShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const Place at = place_of(shape, false);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = args.segment_ids + at.b * shape.T;
  const std::int64_t first_key = at.tile * kOwned, statistics = (at.b * shape.H + at.h) * shape.T;
  load_mma_tile<kOwned, kHeadDim>(k_tile, args.k, head, first_key);
  load_mma_tile<kOwned, kHeadDim>(v_tile, args.v, head, first_key);
  load_mma_segments<kOwned>(k_segment, segments, shape.T, first_key);
  __syncthreads();
  const SegmentRange k_range = segment_range<kOwned>(k_segment);
  const int row[2] = {16 * warp + lane / 4, 16 * warp + lane / 4 + 8};
  const int segment[2] = {k_segment[row[0]], k_segment[row[1]]};
  const float scale = shape.scale * kLog2E;

  float dk[kHeadDim / 8][4] = {}, dv[kHeadDim / 8][4] = {};
  for (std::int64_t first_query = first_key; first_query < shape.T; first_query += kWalked) {
    __syncthreads();  // the tiles before have been used
    load_mma_segments<kWalked>(q_segment, segments, shape.T, first_query);
    __syncthreads();
    if (!overlap(k_range, segment_range<kWalked>(q_segment))) continue;
    load_mma_tile<kWalked, kHeadDim>(q_tile, args.q, head, first_query);
    load_mma_tile<kWalked, kHeadDim>(d_o_tile, args.d_o, head, first_query);
    for (int r = static_cast<int>(threadIdx.x); r < kWalked; r += kMmaThreads) {
      const bool inside = first_query + r < shape.T;
      shift[r] = inside ? args.log_z[statistics + first_query + r] * kLog2E : 0.0f;
      delta[r] = inside ? args.delta[statistics + first_query + r] : 0.0f;
    }
    __syncthreads();
    float p[kTiles][4], ds[kTiles][4];
    mma_row_products<kHeadDim>(p, k_tile + 16 * warp * kStride, q_tile);
    mma_row_products<kHeadDim>(ds, v_tile + 16 * warp * kStride, d_o_tile);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, query = 8 * n + lane % 4 * 2 + i % 2;
        const bool seen = segment[half] > 0 && segment[half] == q_segment[query] &&
                          first_key + row[half] <= first_query + query;
        p[n][i] = seen ? exp2f(p[n][i] * scale - shift[query]) : 0.0f;
        ds[n][i] = p[n][i] * (ds[n][i] - delta[query]);
      }
    mma_add_weighted_rows<kHeadDim>(dv, p, d_o_tile);
    mma_add_weighted_rows<kHeadDim>(dk, ds, q_tile);
  }
  const float one[2] = {1.0f, 1.0f}, factor[2] = {shape.scale, shape.scale};
  store_mma_rows<kHeadDim>(args.dv, head, first_key + 16 * warp, dv, one);
  store_mma_rows<kHeadDim>(args.dk, head, first_key + 16 * warp, dk, factor);
}

template <typename Body>
void with_head_dim(std::int64_t head_dim, Body&& body) {
  if (head_dim <= 64)
    body(std::integral_constant<int, 64>{});
  else
    body(std::integral_constant<int, 128>{});
}

LaunchShape shape_of(const AttentionShape& shape, std::int64_t shared_bytes) {
  return {.blocks = ceil_div(shape.T, kOwned) * shape.B * shape.H,
          .threads = kMmaThreads,
          .shared_bytes = shared_bytes};
}

}  // namespace

void mma_attention_forward(cudaStream_t stream, Element* o, float* log_z, const Element* q,
                           const Element* k, const Element* v, const std::int32_t* segment_ids,
                           const AttentionShape& shape) {
  with_head_dim(shape.Dh, [&](auto head_dim) {
    launch(stream, shape_of(shape, forward_bytes<head_dim.value>()),
           mma_forward_kernel<head_dim.value>, o, log_z, q, k, v, segment_ids, shape);
  });
}

void mma_attention_backward(cudaStream_t stream, Element* dq, Element* dk, Element* dv,
                            const Element* d_o, const Element* q, const Element* k,
                            const Element* v, const std::int32_t* segment_ids, const float* log_z,
                            const float* delta, const AttentionShape& shape) {
  const BackwardArgs args{dq, dk, dv, d_o, q, k, v, segment_ids, log_z, delta, shape};
  with_head_dim(shape.Dh, [&](auto head_dim) {
    launch(stream, shape_of(shape, dq_bytes<head_dim.value>()), mma_dq_kernel<head_dim.value>,
           args);
    launch(stream, shape_of(shape, dkv_bytes<head_dim.value>()), mma_dkv_kernel<head_dim.value>,
           args);
  });
}

}  // namespace openmoe::cuda
