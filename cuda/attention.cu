// Causal attention within segments (Dao et al. 2022, FlashAttention, algorithms 1 and 4), portable:
// f32 arithmetic on any device. A block owns a tile of queries (or, for dk and dv, of keys) of one
// head and walks over the tiles of the other side; the T x T matrix exists a tile at a time. Tiles
// whose segments cannot meet are skipped.
#include "cuda/attention.h"
#include "cuda/attention_shapes.h"
#include "cuda/attention_tiles.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

// Rows of the tiles: of the side a block owns, and of the side it walks over. What fits in shared
// memory decides.
template <int kHeadDim>
struct ForwardTiles {
  static constexpr int kQueries = 64, kKeys = 64, kPStride = kKeys + 4;
  static constexpr std::int64_t kSharedBytes =
      ((kQueries + kKeys) * kTileStride<kHeadDim> + kQueries * kPStride + kQueries + kKeys) * 4;
};
template <int kHeadDim>
struct BackwardTiles {
  static constexpr int kOwned = kHeadDim <= 128 ? 64 : 32, kWalked = kHeadDim <= 64 ? 64 : 32;
};

template <typename T>
struct ForwardArgs {
  T* o;
  float* log_z;
  const T *q, *k, *v;
  const std::int32_t* segment_ids;
  AttentionShape shape;
};

template <typename T>
struct BackwardArgs {
  T *dq, *dk, *dv;
  const T *d_o, *q, *k, *v;
  const std::int32_t* segment_ids;
  const float *log_z, *delta;  // (B, H, T)
  AttentionShape shape;
};

// blockIdx.x = (tile, head, row of the batch), the last tile, which has the most to do among
// queries, first.
struct Place {
  std::int64_t tile, h, b;
};
__device__ inline Place place_of(const AttentionShape& shape, std::int64_t tiles, bool reverse) {
  const std::int64_t heads = shape.B * shape.H, tile = blockIdx.x / heads,
                     head = blockIdx.x % heads;
  return {reverse ? tiles - 1 - tile : tile, head % shape.H, head / shape.H};
}

__device__ inline HeadRows head_rows(const AttentionShape& shape, const Place& at) {
  return {at.b * shape.T * shape.H * shape.Dh + at.h * shape.Dh, shape.H * shape.Dh, shape.T,
          static_cast<int>(shape.Dh), shape.vectors};
}

// hot <32>: at least 1 block per SM, with 36352 bytes of dynamic shared memory
// hot <64>: at least 1 block per SM, with 52736 bytes of dynamic shared memory
// hot <128>: at least 1 block per SM, with 85504 bytes of dynamic shared memory
// hot <256>: at least 1 block per SM, with 151040 bytes of dynamic shared memory
// bytes: 16 of 16 per element of o (f32, T 2048), 128 more from L2
// flops: 4096 of 4096 per element of o (f32)
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attention_forward_kernel(ForwardArgs<T> args) {
  using Tiles = ForwardTiles<kHeadDim>;
  constexpr int kQueries = Tiles::kQueries, kKeys = Tiles::kKeys, kPStride = Tiles::kPStride;
  constexpr int kRows = kQueries / kSide, kColumns = kKeys / kSide, kOut = kHeadDim / kSide;
  const AttentionShape& shape = args.shape;
  const Place at = place_of(shape, (shape.T + kQueries - 1) / kQueries, true);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = args.segment_ids + at.b * shape.T;
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;

  float* const q_tile = dynamic_shared<float>();
  float* const kv_tile = q_tile + kQueries * kTileStride<kHeadDim>;  // keys, then values
  float* const p_tile = kv_tile + kKeys * kTileStride<kHeadDim>;
  int* const q_segment = reinterpret_cast<int*>(p_tile + kQueries * kPStride);
  int* const k_segment = q_segment + kQueries;

  const std::int64_t first_query = at.tile * kQueries;
  load_tile<kQueries, kHeadDim>(q_tile, args.q, head, first_query);
  load_segments<kQueries>(q_segment, segments, shape.T, first_query);
  __syncthreads();
  const SegmentRange q_range = segment_range<kQueries>(q_segment);

  float out[kRows][kOut] = {};
  float largest[kRows], sum[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) largest[i] = -INFINITY;
  for (std::int64_t first_key = 0; first_key < first_query + kQueries && first_key < shape.T;
       first_key += kKeys) {
    __syncthreads();  // the tile before has been used
    load_segments<kKeys>(k_segment, segments, shape.T, first_key);
    __syncthreads();
    if (!overlap(q_range, segment_range<kKeys>(k_segment))) continue;
    load_tile<kKeys, kHeadDim>(kv_tile, args.k, head, first_key);
    __syncthreads();
    float p[kRows][kColumns];
    row_products<kHeadDim>(p, q_tile, kv_tile);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = ty + kSide * i;
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int key = tx + kSide * j;
        const bool seen = q_segment[row] > 0 && q_segment[row] == k_segment[key] &&
                          first_key + key <= first_query + row;
        p[i][j] = seen ? p[i][j] * shape.scale : -INFINITY;
        top = fmaxf(top, p[i][j]);
      }
      top = fmaxf(largest[i], row_max(top));
      const float shift = top == -INFINITY ? 0.0f : top;  // a row that has seen nothing yet
      const float keep = expf(largest[i] - shift);
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        p[i][j] = expf(p[i][j] - shift);
        total += p[i][j];
        p_tile[row * kPStride + tx + kSide * j] = p[i][j];
      }
      sum[i] = sum[i] * keep + row_sum(total);
      largest[i] = top;
#pragma unroll
      for (int j = 0; j < kOut; ++j) out[i][j] *= keep;
    }
    __syncthreads();  // all have used the keys and written their weights
    load_tile<kKeys, kHeadDim>(kv_tile, args.v, head, first_key);
    __syncthreads();
    add_weighted_rows<kHeadDim, kKeys, kPStride>(out, p_tile, kv_tile);
  }

  float factor[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = first_query + ty + kSide * i;
    const bool real = q_segment[ty + kSide * i] > 0;
    factor[i] = real ? 1.0f / sum[i] : 0.0f;
    if (tx == 0 && row < shape.T)
      args.log_z[(at.b * shape.H + at.h) * shape.T + row] = real ? largest[i] + logf(sum[i]) : 0.0f;
  }
  store_rows(args.o, head, first_query, out, factor);
}

// delta[b, h, t] = <d_o, o>; a warp per (b, t, h).
// hot: at least 5 blocks per SM
// bytes: 4 of 4 per element of o (bf16), 4 in flight per thread
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_delta_kernel(float* delta, const T* d_o, const T* o, AttentionShape shape) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t count = shape.B * shape.T * shape.H;
  for (std::int64_t i = global_thread() / kWarp; i < count; i += num_global_threads() / kWarp) {
    if (shape.is_elsewhere(i / shape.H / shape.T)) continue;
    float sum = 0.0f;
    for (std::int64_t d = lane; d < shape.Dh; d += kWarp)
      sum += to_float(d_o[i * shape.Dh + d]) * to_float(o[i * shape.Dh + d]);
    sum = warp_sum(sum);
    const std::int64_t h = i % shape.H, t = i / shape.H % shape.T, b = i / shape.H / shape.T;
    if (lane == 0) delta[(b * shape.H + h) * shape.T + t] = sum;
  }
}

// log_z and delta of rows, zero beyond the sequence.
template <int kRows>
__device__ inline void load_statistics(float* log_z, float* delta, const float* all_log_z,
                                       const float* all_delta, std::int64_t first_row,
                                       std::int64_t T) {
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kAttentionThreads) {
    const bool inside = first_row + r < T;
    log_z[r] = inside ? all_log_z[first_row + r] : 0.0f;
    delta[r] = inside ? all_delta[first_row + r] : 0.0f;
  }
}

// With P = exp(scale q k^T - log_z) and dP = d_o v^T: dS = P (dP - delta), dq = scale dS k, dk =
// scale dS^T q, dv = P^T d_o. Turns products (q k^T, d_o v^T) of a tile into (P, dS).
template <int kRows, int kColumns>
__device__ inline void weights_and_gradients(float (&p)[kRows][kColumns],
                                             float (&ds)[kRows][kColumns], const int* q_segment,
                                             const int* k_segment, const float* log_z,
                                             const float* delta, float scale,
                                             std::int64_t first_query, std::int64_t first_key) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = ty + kSide * i;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int key = tx + kSide * j;
      const bool seen = q_segment[row] > 0 && q_segment[row] == k_segment[key] &&
                        first_key + key <= first_query + row;
      p[i][j] = seen ? expf(p[i][j] * scale - log_z[row]) : 0.0f;
      ds[i][j] = p[i][j] * (ds[i][j] - delta[row]);
    }
  }
}

template <int kStride, int kRows, int kColumns>
__device__ inline void store_weights(float* tile, const float (&value)[kRows][kColumns]) {
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      tile[(ty + kSide * i) * kStride + tx + kSide * j] = value[i][j];
}

// Where the tiles of a backward kernel lie: q and d_o, k and v, weights, segments, statistics.
template <int kQueries, int kKeys, int kHeadDim>
struct BackwardShared {
  static constexpr int kStride = kKeys + 4;
  static constexpr std::int64_t kBytes = (2 * (kQueries + kKeys) * kTileStride<kHeadDim> +
                                          2 * kQueries * kStride + 3 * kQueries + kKeys) *
                                         4;
  __device__ BackwardShared()
      : q(dynamic_shared<float>()),
        d_o(q + kQueries * kTileStride<kHeadDim>),
        k(d_o + kQueries * kTileStride<kHeadDim>),
        v(k + kKeys * kTileStride<kHeadDim>),
        p(v + kKeys * kTileStride<kHeadDim>),
        ds(p + kQueries * kStride),
        log_z(ds + kQueries * kStride),
        delta(log_z + kQueries),
        q_segment(reinterpret_cast<int*>(delta + kQueries)),
        k_segment(q_segment + kQueries) {}
  float *q, *d_o, *k, *v, *p, *ds, *log_z, *delta;
  int *q_segment, *k_segment;
};

// hot <32>: at least 1 block per SM, with 72704 bytes of dynamic shared memory
// hot <64>: at least 1 block per SM, with 105472 bytes of dynamic shared memory
// hot <128>: at least 1 block per SM, with 120704 bytes of dynamic shared memory
// hot <256>: at least 1 block per SM, with 142848 bytes of dynamic shared memory
// bytes: 20 of 20 per element of dq (f32, T 2048), 128 more from L2
// flops: 6144 of 2048 per element of dq (f32; the scores are computed again)
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_dq_kernel(BackwardArgs<T> args) {
  constexpr int kQueries = BackwardTiles<kHeadDim>::kOwned,
                kKeys = BackwardTiles<kHeadDim>::kWalked;
  using Shared = BackwardShared<kQueries, kKeys, kHeadDim>;
  constexpr int kRows = kQueries / kSide, kColumns = kKeys / kSide, kOut = kHeadDim / kSide;
  const AttentionShape& shape = args.shape;
  const Place at = place_of(shape, (shape.T + kQueries - 1) / kQueries, true);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = args.segment_ids + at.b * shape.T;
  const std::int64_t statistics = (at.b * shape.H + at.h) * shape.T,
                     first_query = at.tile * kQueries;
  const Shared shared;
  load_tile<kQueries, kHeadDim>(shared.q, args.q, head, first_query);
  load_tile<kQueries, kHeadDim>(shared.d_o, args.d_o, head, first_query);
  load_segments<kQueries>(shared.q_segment, segments, shape.T, first_query);
  load_statistics<kQueries>(shared.log_z, shared.delta, args.log_z + statistics,
                            args.delta + statistics, first_query, shape.T);
  __syncthreads();
  const SegmentRange q_range = segment_range<kQueries>(shared.q_segment);

  float dq[kRows][kOut] = {};
  for (std::int64_t first_key = 0; first_key < first_query + kQueries && first_key < shape.T;
       first_key += kKeys) {
    __syncthreads();  // the tiles before have been used
    load_segments<kKeys>(shared.k_segment, segments, shape.T, first_key);
    __syncthreads();
    if (!overlap(q_range, segment_range<kKeys>(shared.k_segment))) continue;
    load_tile<kKeys, kHeadDim>(shared.k, args.k, head, first_key);
    load_tile<kKeys, kHeadDim>(shared.v, args.v, head, first_key);
    __syncthreads();
    float p[kRows][kColumns], ds[kRows][kColumns];
    row_products<kHeadDim>(p, shared.q, shared.k);
    row_products<kHeadDim>(ds, shared.d_o, shared.v);
    weights_and_gradients(p, ds, shared.q_segment, shared.k_segment, shared.log_z, shared.delta,
                          shape.scale, first_query, first_key);
    store_weights<Shared::kStride>(shared.ds, ds);
    __syncthreads();
    add_weighted_rows<kHeadDim, kKeys, Shared::kStride>(dq, shared.ds, shared.k);
  }
  float factor[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) factor[i] = shape.scale;
  store_rows(args.dq, head, first_query, dq, factor);
}

// hot <32>: at least 1 block per SM, with 72704 bytes of dynamic shared memory
// hot <64>: at least 1 block per SM, with 105472 bytes of dynamic shared memory
// hot <128>: at least 1 block per SM, with 119424 bytes of dynamic shared memory
// hot <256>: at least 1 block per SM, with 142848 bytes of dynamic shared memory
// bytes: 24 of 24 per element of dk (f32, T 2048), 128 more from L2
// flops: 8192 of 8192 per element of dk (f32)
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_dkv_kernel(BackwardArgs<T> args) {
  constexpr int kQueries = BackwardTiles<kHeadDim>::kWalked,
                kKeys = BackwardTiles<kHeadDim>::kOwned;
  using Shared = BackwardShared<kQueries, kKeys, kHeadDim>;
  constexpr int kRows = kQueries / kSide, kColumns = kKeys / kSide, kOut = kHeadDim / kSide;
  const AttentionShape& shape = args.shape;
  const Place at = place_of(shape, (shape.T + kKeys - 1) / kKeys, false);
  if (shape.is_elsewhere(at.b)) return;
  const HeadRows head = head_rows(shape, at);
  const std::int32_t* const segments = args.segment_ids + at.b * shape.T;
  const std::int64_t statistics = (at.b * shape.H + at.h) * shape.T, first_key = at.tile * kKeys;
  const Shared shared;
  load_tile<kKeys, kHeadDim>(shared.k, args.k, head, first_key);
  load_tile<kKeys, kHeadDim>(shared.v, args.v, head, first_key);
  load_segments<kKeys>(shared.k_segment, segments, shape.T, first_key);
  __syncthreads();
  const SegmentRange k_range = segment_range<kKeys>(shared.k_segment);

  float dk[kColumns][kOut] = {}, dv[kColumns][kOut] = {};
  for (std::int64_t first_query = first_key / kQueries * kQueries; first_query < shape.T;
       first_query += kQueries) {
    __syncthreads();  // the tiles before have been used
    load_segments<kQueries>(shared.q_segment, segments, shape.T, first_query);
    __syncthreads();
    if (!overlap(k_range, segment_range<kQueries>(shared.q_segment))) continue;
    load_tile<kQueries, kHeadDim>(shared.q, args.q, head, first_query);
    load_tile<kQueries, kHeadDim>(shared.d_o, args.d_o, head, first_query);
    load_statistics<kQueries>(shared.log_z, shared.delta, args.log_z + statistics,
                              args.delta + statistics, first_query, shape.T);
    __syncthreads();
    float p[kRows][kColumns], ds[kRows][kColumns];
    row_products<kHeadDim>(p, shared.q, shared.k);
    row_products<kHeadDim>(ds, shared.d_o, shared.v);
    weights_and_gradients(p, ds, shared.q_segment, shared.k_segment, shared.log_z, shared.delta,
                          shape.scale, first_query, first_key);
    store_weights<Shared::kStride>(shared.p, p);
    store_weights<Shared::kStride>(shared.ds, ds);
    __syncthreads();
    add_weighted_rows_transposed<kHeadDim, kQueries, Shared::kStride>(dv, shared.p, shared.d_o);
    add_weighted_rows_transposed<kHeadDim, kQueries, Shared::kStride>(dk, shared.ds, shared.q);
  }
  float one[kColumns], factor[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    one[i] = 1.0f;
    factor[i] = shape.scale;
  }
  store_rows(args.dv, head, first_key, dv, one);
  store_rows(args.dk, head, first_key, dk, factor);
}

// Calls body(std::integral_constant<int, kHeadDim>) with the smallest compiled width that holds a
// head. Narrow heads of bf16 are left to the tensor cores.
template <typename T, typename Body>
void with_head_dim(std::int64_t head_dim, Body&& body) {
  OPENMOE_CHECK(head_dim <= kMaxHeadDim, "head width ", head_dim,
                "; the CUDA backend has attention for up to ", kMaxHeadDim);
  if constexpr (std::is_same_v<T, float>) {
    if (head_dim <= 32) return body(std::integral_constant<int, 32>{});
    if (head_dim <= 64) return body(std::integral_constant<int, 64>{});
    if (head_dim <= 128) return body(std::integral_constant<int, 128>{});
  }
  body(std::integral_constant<int, 256>{});
}

bool use_tensor_cores(const Tensor& q) {
  return q.dtype == DType::bf16 && q.size(3) <= kMaxMmaHeadDim;
}
std::int64_t vector_width(const Tensor& q) {
  return 16 / size_of(q.dtype);
}

template <typename T>
void portable_forward(cudaStream_t stream, const ForwardArgs<T>& args) {
  with_head_dim<T>(args.shape.Dh, [&](auto head_dim) {
    using Tiles = ForwardTiles<head_dim.value>;
    launch(stream,
           {.blocks = ceil_div(args.shape.T, Tiles::kQueries) * args.shape.B * args.shape.H,
            .threads = kAttentionThreads,
            .shared_bytes = Tiles::kSharedBytes},
           attention_forward_kernel<T, head_dim.value>, args);
  });
}

template <typename T>
void portable_backward(cudaStream_t stream, const BackwardArgs<T>& args) {
  with_head_dim<T>(args.shape.Dh, [&](auto head_dim) {
    constexpr int kHeadDim = head_dim.value;
    using Tiles = BackwardTiles<kHeadDim>;
    const std::int64_t blocks = ceil_div(args.shape.T, Tiles::kOwned) * args.shape.B * args.shape.H;
    launch(stream,
           {.blocks = blocks,
            .threads = kAttentionThreads,
            .shared_bytes = BackwardShared<Tiles::kOwned, Tiles::kWalked, kHeadDim>::kBytes},
           attention_dq_kernel<T, kHeadDim>, args);
    launch(stream,
           {.blocks = blocks,
            .threads = kAttentionThreads,
            .shared_bytes = BackwardShared<Tiles::kWalked, Tiles::kOwned, kHeadDim>::kBytes},
           attention_dkv_kernel<T, kHeadDim>, args);
  });
}

}  // namespace

void builtin_attention_forward(cudaStream_t stream, const AttentionForward& x, float scale,
                               const std::int32_t* elsewhere) {
  const AttentionShape shape{
      x.q.size(0), x.q.size(1), x.q.size(2),
      x.q.size(3), scale,       can_vectorise(vector_width(x.q), x.q.size(3), x.o, x.q, x.k, x.v),
      elsewhere};
  const std::int32_t* const segment_ids = x.segment_ids.as<std::int32_t>();
  if (use_tensor_cores(x.q)) {
    using T = __nv_bfloat16;
    mma_attention_forward(stream, x.o.as<T>(), x.log_z.as<float>(), x.q.as<T>(), x.k.as<T>(),
                          x.v.as<T>(), segment_ids, shape);
    return;
  }
  with_storage(x.q.dtype, [&]<typename T>(std::type_identity<T>) {
    portable_forward<T>(stream, {x.o.as<T>(), x.log_z.as<float>(), x.q.as<T>(), x.k.as<T>(),
                                 x.v.as<T>(), segment_ids, shape});
  });
}

void builtin_attention_backward(cudaStream_t stream, const AttentionBackward& x, float* delta,
                                float scale, const std::int32_t* elsewhere) {
  const AttentionShape shape{
      x.q.size(0),
      x.q.size(1),
      x.q.size(2),
      x.q.size(3),
      scale,
      can_vectorise(vector_width(x.q), x.q.size(3), x.dq, x.dk, x.dv, x.d_o, x.q, x.k, x.v),
      elsewhere};
  const std::int32_t* const segment_ids = x.segment_ids.as<std::int32_t>();
  const float* const log_z = x.log_z.as<float>();
  with_storage(x.q.dtype, [&]<typename T>(std::type_identity<T>) {
    launch(stream,
           blocks_for(shape.B * shape.T * shape.H, kAttentionThreads / kWarp, kAttentionThreads),
           attention_delta_kernel<T>, delta, x.d_o.as<T>(), x.o.as<T>(), shape);
  });
  if (use_tensor_cores(x.q)) {
    using T = __nv_bfloat16;
    mma_attention_backward(stream, x.dq.as<T>(), x.dk.as<T>(), x.dv.as<T>(), x.d_o.as<T>(),
                           x.q.as<T>(), x.k.as<T>(), x.v.as<T>(), segment_ids, log_z, delta, shape);
    return;
  }
  with_storage(x.q.dtype, [&]<typename T>(std::type_identity<T>) {
    portable_backward<T>(
        stream, {x.dq.as<T>(), x.dk.as<T>(), x.dv.as<T>(), x.d_o.as<T>(), x.q.as<T>(), x.k.as<T>(),
                 x.v.as<T>(), segment_ids, log_z, delta, shape});
  });
}

}  // namespace cuda
}  // namespace openmoe
