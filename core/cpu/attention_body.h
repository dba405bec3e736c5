// Attention of one (row, head), for all instruction sets (see kernels_body.h for the rules of such
// files).
//
// Scores are kept transposed, [key][query]: the lanes of a vector are queries, so that the softmax
// over keys is elementwise, and the block serves as the left operand of the products with v (depth
// = keys) and of the gradients of keys (rows = keys) without being moved. Scores are in units of
// log 2: q is packed times scale / ln 2, and 2^x replaces e^x.
#pragma once

#include <cstdint>

#include "core/cpu/kernels.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"
#include "core/cpu/vector_math.h"

namespace openmoe::cpu::body {

inline constexpr std::int64_t kAttentionBlock = 64;  // queries and keys of a block
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;
inline constexpr float kNoScore = -1e30f;  // a running maximum before any key

template <class T>
[[gnu::always_inline]] inline Vec<T> exp2_vec(Vec<T> x) {
  return exp2_approx<Vec<T>, UnsignedVec<T>>(x);
}

[[gnu::always_inline]] inline std::int64_t round_up(std::int64_t size, std::int64_t unit) {
  return (size + unit - 1) / unit * unit;
}

// Positive segment ids of a block of positions.
struct SegmentRange {
  std::int32_t lowest, highest;  // highest 0: no real position
  bool uniform;                  // all positions are real and of one segment
};

template <class T>
SegmentRange segment_range(const std::int32_t* segment_ids, std::int64_t count) {
  SegmentRange range{0x7fffffff, 0, true};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t id = segment_ids[i];
    if (id <= 0) {
      range.uniform = false;
      continue;
    }
    range.lowest = id < range.lowest ? id : range.lowest;
    range.highest = id > range.highest ? id : range.highest;
  }
  range.uniform = range.uniform && range.lowest == range.highest;
  return range;
}

[[gnu::always_inline]] inline bool meet(const SegmentRange& a, const SegmentRange& b) {
  return a.highest > 0 && b.highest > 0 && a.lowest <= b.highest && b.lowest <= a.highest;
}

// One pair of blocks.
struct BlockPair {
  std::int64_t query, num_queries, key, num_keys;
  bool masked;  // some pairs of positions may not attend
};

// Scores of pairs that may not attend become -infinity.
template <class T>
void mask_scores(float* scores, const std::int32_t* segment_ids, const BlockPair& pair) {
  constexpr std::int64_t kLanes = T::kLanes;
  constexpr float kMinusInfinity = -__builtin_inff();
  for (std::int64_t i = 0; i < pair.num_queries; i += kLanes) {
    IntVec<T> segment, position;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const bool real = i + lane < pair.num_queries;
      segment[lane] = real ? segment_ids[pair.query + i + lane] : 0;
      position[lane] = static_cast<std::int32_t>(pair.query + i + lane - pair.key);
    }
    for (std::int64_t j = 0; j < pair.num_keys; ++j) {
      const std::int32_t key_segment = segment_ids[pair.key + j];
      Vec<T> s;
      load(s, scores + j * kAttentionBlock + i);
      const IntVec<T> open =
          (segment == key_segment) & (segment > 0) & (position >= static_cast<std::int32_t>(j));
      s = open ? s : kMinusInfinity - Vec<T>{};
      store(scores + j * kAttentionBlock + i, s);
    }
  }
}

// Multiplies a packed block.
template <class T>
void scale_values(float* values, std::int64_t count, float factor) {
  for (std::int64_t i = 0; i < count; ++i) values[i] *= factor;
}

// ---- forward ----

// Online softmax of kVecs columns of scores: the scores become 2^(s - new maximum); row_max,
// row_sum and rescale (the factor for everything summed before) are those of the queries.
template <class T, int kVecs>
[[gnu::always_inline]] inline void softmax_columns(float* scores, std::int64_t num_keys,
                                                   float* row_max, float* row_sum, float* rescale) {
  constexpr std::int64_t kLanes = T::kLanes;
  Vec<T> highest[kVecs], sum[kVecs] = {};
  for (int c = 0; c < kVecs; ++c) load(highest[c], row_max + c * kLanes);
  for (std::int64_t j = 0; j < num_keys; ++j) {
#pragma GCC unroll 4
    for (int c = 0; c < kVecs; ++c) {
      Vec<T> s;
      load(s, scores + j * kAttentionBlock + c * kLanes);
      highest[c] = s > highest[c] ? s : highest[c];
    }
  }
  for (std::int64_t j = 0; j < num_keys; ++j) {
#pragma GCC unroll 4
    for (int c = 0; c < kVecs; ++c) {
      Vec<T> s;
      load(s, scores + j * kAttentionBlock + c * kLanes);
      const Vec<T> p = exp2_vec<T>(s - highest[c]);
      sum[c] = sum[c] + p;
      store(scores + j * kAttentionBlock + c * kLanes, p);
    }
  }
  for (int c = 0; c < kVecs; ++c) {
    Vec<T> old_max, old_sum;
    load(old_max, row_max + c * kLanes);
    load(old_sum, row_sum + c * kLanes);
    const Vec<T> factor = exp2_vec<T>(old_max - highest[c]);
    store(row_max + c * kLanes, highest[c]);
    store(row_sum + c * kLanes, Vec<T>(old_sum * factor + sum[c]));
    store(rescale + c * kLanes, factor);
  }
}

template <class T>
void softmax_block(float* scores, const BlockPair& pair, float* row_max, float* row_sum,
                   float* rescale) {
  constexpr std::int64_t kLanes = T::kLanes;
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= round_up(pair.num_queries, kLanes); i += 4 * kLanes)
    softmax_columns<T, 4>(scores + i, pair.num_keys, row_max + i, row_sum + i, rescale + i);
  for (; i < pair.num_queries; i += kLanes)
    softmax_columns<T, 1>(scores + i, pair.num_keys, row_max + i, row_sum + i, rescale + i);
}

template <class T>
void rescale_rows(float* sums, std::int64_t width, std::int64_t rows, const float* rescale) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (rescale[i] == 1.0f) continue;  // the usual case after the first blocks
    for (std::int64_t d = 0; d < width; ++d) sums[i * width + d] *= rescale[i];
  }
}

// Scratch, in this order; sizes in floats.
struct ForwardScratch {
  std::int64_t keys, values, queries, scores, sums, statistics, total;
};

template <class T>
ForwardScratch forward_layout(std::int64_t positions, std::int64_t Dh) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const std::int64_t padded = round_up(positions, kAttentionBlock);
  ForwardScratch s{};
  s.keys = round_up(padded * Dh + kPackSlack, 16);
  s.values = padded * round_up(Dh, kPanel);
  s.queries = kAttentionBlock * round_up(Dh, 16);
  s.scores = kAttentionBlock * kAttentionBlock;
  s.sums = kAttentionBlock * round_up(Dh, kPanel);
  s.statistics = 3 * kAttentionBlock;
  s.total = s.keys + s.values + s.queries + s.scores + s.sums + s.statistics;
  return s;
}

template <class T>
std::int64_t attention_forward_scratch(std::int64_t positions, std::int64_t Dh) {
  return forward_layout<T>(positions, Dh).total;
}

// o = sums / row_sum and log_z, for the queries that are real; 0 for the others.
template <class T, class S>
void finish_queries(const AttentionHead& head, std::int64_t query, std::int64_t num_queries,
                    const float* sums, std::int64_t width, const float* row_max,
                    const float* row_sum, S* o, float* log_z) {
  for (std::int64_t i = 0; i < num_queries; ++i) {
    S* to = o + (query + i) * head.stride;
    if (head.segment_ids[query + i] <= 0) {
      for (std::int64_t d = 0; d < head.Dh; ++d) to[d] = S{};
      log_z[query + i] = 0.0f;
      continue;
    }
    const float factor = 1.0f / row_sum[i];
    store_scaled<T>(to, sums + i * width, factor, head.Dh);
    log_z[query + i] = row_max[i] * kLn2 + __builtin_logf(row_sum[i]);
  }
}

template <class T, class Source, class S>
void attention_forward_head(const AttentionHead& head, S* o, float* log_z, const S* q, const S* k,
                            const S* v, float* scratch) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const std::int64_t Dh = head.Dh, stride = head.stride;
  const std::int64_t width = round_up(Dh, kPanel);
  const ForwardScratch layout = forward_layout<T>(head.T, Dh);
  float* values = scratch;
  float* queries = values + layout.values;
  float* scores = queries + layout.queries;
  float* sums = scores + layout.scores;
  float* row_max = sums + layout.sums;
  float* row_sum = row_max + kAttentionBlock;
  float* rescale = row_sum + kAttentionBlock;
  float* keys = rescale + kAttentionBlock;  // last: packing it may write a little beyond
  for (std::int64_t key = 0; key < head.T; key += kAttentionBlock) {
    const std::int64_t num_keys = min_of(kAttentionBlock, head.T - key);
    pack_a<T, Source>(keys + key * Dh, k + key * stride, stride, false, num_keys, Dh);
    pack_b<T, Source>(values + key * width, v + key * stride, stride, false, num_keys, Dh);
  }
  for (std::int64_t query = 0; query < head.T; query += kAttentionBlock) {
    const std::int64_t num_queries = min_of(kAttentionBlock, head.T - query);
    const SegmentRange query_range = segment_range<T>(head.segment_ids + query, num_queries);
    pack_b<T, Source>(queries, q + query * stride, stride, true, Dh, num_queries);
    scale_values<T>(queries, round_up(num_queries, kPanel) * Dh, head.scale * kLog2E);
    for (std::int64_t i = 0; i < kAttentionBlock; ++i) {
      row_max[i] = kNoScore;
      row_sum[i] = 0.0f;
    }
    bool first = true;
    for (std::int64_t key = 0; key < query + num_queries; key += kAttentionBlock) {
      BlockPair pair{query, num_queries, key, min_of(kAttentionBlock, head.T - key), true};
      const SegmentRange key_range = segment_range<T>(head.segment_ids + key, pair.num_keys);
      if (!meet(query_range, key_range)) continue;
      pair.masked = !(query_range.uniform && key_range.uniform && key + pair.num_keys <= query + 1);
      multiply<T, PackedTiles>(keys + key * Dh, queries, scores, kAttentionBlock, pair.num_keys,
                               round_up(num_queries, T::kLanes), Dh, false);
      if (pair.masked) mask_scores<T>(scores, head.segment_ids, pair);
      softmax_block<T>(scores, pair, row_max, row_sum, rescale);
      if (!first) rescale_rows<T>(sums, width, num_queries, rescale);
      multiply<T, DepthMajor<kAttentionBlock>>(scores, values + key * width, sums, width,
                                               num_queries, round_up(Dh, T::kLanes), pair.num_keys,
                                               !first);
      first = false;
    }
    finish_queries<T, S>(head, query, num_queries, sums, width, row_max, row_sum, o, log_z);
  }
}

// ---- backward ----

// p from the scores, in place, and ds = p (dp - D) in place of dp. Lanes are queries.
template <class T>
void softmax_backward_block(float* scores, float* d_scores, const BlockPair& pair,
                            const float* log_z, const float* row_dot) {
  constexpr std::int64_t kLanes = T::kLanes;
  for (std::int64_t j = 0; j < pair.num_keys; ++j) {
    for (std::int64_t i = 0; i < pair.num_queries; i += kLanes) {
      Vec<T> s, dp, z, dot;
      load(s, scores + j * kAttentionBlock + i);
      load(dp, d_scores + j * kAttentionBlock + i);
      load(z, log_z + i);
      load(dot, row_dot + i);
      const Vec<T> p = exp2_vec<T>(s - z);
      store(scores + j * kAttentionBlock + i, p);
      store(d_scores + j * kAttentionBlock + i, Vec<T>(p * (dp - dot)));
    }
  }
}

struct BackwardScratch {
  // Of all positions: q and d_o packed as columns (depth Dh) and as rows (depth queries), sums of
  // dq (as large as rows), log_z and D.
  std::int64_t columns, rows, positions;
  // Of a block of keys: packed as the left operand (with slack) and as rows; sums of dk or dv;
  // scores.
  std::int64_t tiles, block_rows, scores, total;
};

template <class T>
BackwardScratch backward_layout(std::int64_t positions, std::int64_t Dh) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  BackwardScratch s{};
  s.positions = round_up(positions, kAttentionBlock);
  s.columns = s.positions * Dh;
  s.rows = s.positions * round_up(Dh, kPanel);
  s.tiles = round_up(kAttentionBlock * Dh + kPackSlack, 16);
  s.block_rows = kAttentionBlock * round_up(Dh, kPanel);
  s.scores = kAttentionBlock * kAttentionBlock;
  s.total =
      2 * s.columns + 3 * s.rows + 2 * s.positions + 2 * s.tiles + 3 * s.block_rows + 2 * s.scores;
  return s;
}

template <class T>
std::int64_t attention_backward_scratch(std::int64_t positions, std::int64_t Dh) {
  return backward_layout<T>(positions, Dh).total;
}

// All that the backward of a (row, head) keeps in scratch.
template <class T>
struct BackwardBuffers {
  float *q_columns, *do_columns, *q_rows, *do_rows, *dq, *log_z, *row_dot;
  float *dk, *dv, *k_rows, *scores, *d_scores, *k_tiles, *v_tiles;

  BackwardBuffers(float* scratch, std::int64_t positions, std::int64_t Dh) {
    const BackwardScratch layout = backward_layout<T>(positions, Dh);
    const auto take = [&](std::int64_t size) {
      float* block = scratch;
      scratch += size;
      return block;
    };
    q_columns = take(layout.columns);
    do_columns = take(layout.columns);
    q_rows = take(layout.rows);
    do_rows = take(layout.rows);
    dq = take(layout.rows);
    log_z = take(layout.positions);
    row_dot = take(layout.positions);
    dk = take(layout.block_rows);
    dv = take(layout.block_rows);
    k_rows = take(layout.block_rows);
    scores = take(layout.scores);
    d_scores = take(layout.scores);
    k_tiles = take(layout.tiles);
    v_tiles = take(layout.tiles);
  }
};

// sum of x y
template <class T, class Source>
float row_product(const typename Source::Element* x, const typename Source::Element* y,
                  std::int64_t n) {
  Vec<T> sums = {};
  std::int64_t i = 0;
  for (; i + T::kLanes <= n; i += T::kLanes) {
    Vec<T> a, b;
    Source::along(a, x + i);
    Source::along(b, y + i);
    sums = sums + a * b;
  }
  float total = 0.0f;
  for (int lane = 0; lane < T::kLanes; ++lane) total += sums[lane];
  for (; i < n; ++i) total += Source::one(x + i, 1, false) * Source::one(y + i, 1, false);
  return total;
}

template <class T, class Source, class S>
void prepare_queries(const AttentionHead& head, const BackwardBuffers<T>& buffers, const S* d_o,
                     const S* q, const S* o, const float* log_z) {
  using Element = typename Source::Element;
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const std::int64_t Dh = head.Dh, stride = head.stride, width = round_up(Dh, kPanel);
  for (std::int64_t query = 0; query < head.T; query += kAttentionBlock) {
    const std::int64_t count = min_of(kAttentionBlock, head.T - query);
    const std::int64_t at = query * stride;
    pack_b<T, Source>(buffers.q_columns + query * Dh, q + at, stride, true, Dh, count);
    scale_values<T>(buffers.q_columns + query * Dh, round_up(count, kPanel) * Dh,
                    head.scale * kLog2E);
    pack_b<T, Source>(buffers.do_columns + query * Dh, d_o + at, stride, true, Dh, count);
    pack_b<T, Source>(buffers.q_rows + query * width, q + at, stride, false, count, Dh);
    pack_b<T, Source>(buffers.do_rows + query * width, d_o + at, stride, false, count, Dh);
    for (std::int64_t i = 0; i < kAttentionBlock * width; ++i) buffers.dq[query * width + i] = 0.0f;
    for (std::int64_t i = 0; i < kAttentionBlock; ++i) {
      const auto row = [&](const S* x) __attribute__((always_inline)) {
        return reinterpret_cast<const Element*>(x + at + i * stride);
      };
      buffers.row_dot[query + i] = i < count ? row_product<T, Source>(row(d_o), row(o), Dh) : 0.0f;
      buffers.log_z[query + i] = i < count ? log_z[query + i] * kLog2E : 0.0f;
    }
  }
}

// One block of keys against one block of queries: adds to dk and dv of the block and to dq, all in
// buffers.
template <class T>
void backward_pair(const AttentionHead& head, const BackwardBuffers<T>& buffers,
                   const BlockPair& pair, bool first) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  constexpr std::int64_t kBlock = kAttentionBlock;
  const std::int64_t Dh = head.Dh, width = round_up(Dh, kPanel);
  const std::int64_t columns = round_up(pair.num_queries, T::kLanes),
                     dims = round_up(Dh, T::kLanes);
  multiply<T, PackedTiles>(buffers.k_tiles, buffers.q_columns + pair.query * Dh, buffers.scores,
                           kBlock, pair.num_keys, columns, Dh, false);
  if (pair.masked) mask_scores<T>(buffers.scores, head.segment_ids, pair);
  multiply<T, PackedTiles>(buffers.v_tiles, buffers.do_columns + pair.query * Dh, buffers.d_scores,
                           kBlock, pair.num_keys, columns, Dh, false);
  softmax_backward_block<T>(buffers.scores, buffers.d_scores, pair, buffers.log_z + pair.query,
                            buffers.row_dot + pair.query);
  multiply<T, RowMajor<kBlock>>(buffers.scores, buffers.do_rows + pair.query * width, buffers.dv,
                                width, pair.num_keys, dims, pair.num_queries, !first);
  multiply<T, RowMajor<kBlock>>(buffers.d_scores, buffers.q_rows + pair.query * width, buffers.dk,
                                width, pair.num_keys, dims, pair.num_queries, !first);
  multiply<T, DepthMajor<kBlock>>(buffers.d_scores, buffers.k_rows, buffers.dq + pair.query * width,
                                  width, pair.num_queries, dims, pair.num_keys, true);
}

template <class T, class Source, class S>
void attention_backward_head(const AttentionHead& head, S* dq, S* dk, S* dv, const S* d_o,
                             const S* q, const S* k, const S* v, const S* o, const float* log_z,
                             float* scratch) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const std::int64_t Dh = head.Dh, stride = head.stride, width = round_up(Dh, kPanel);
  const BackwardBuffers<T> buffers(scratch, head.T, Dh);
  prepare_queries<T, Source>(head, buffers, d_o, q, o, log_z);
  for (std::int64_t key = 0; key < head.T; key += kAttentionBlock) {
    const std::int64_t num_keys = min_of(kAttentionBlock, head.T - key);
    const SegmentRange key_range = segment_range<T>(head.segment_ids + key, num_keys);
    pack_a<T, Source>(buffers.k_tiles, k + key * stride, stride, false, num_keys, Dh);
    pack_a<T, Source>(buffers.v_tiles, v + key * stride, stride, false, num_keys, Dh);
    pack_b<T, Source>(buffers.k_rows, k + key * stride, stride, false, num_keys, Dh);
    scale_values<T>(buffers.k_rows, num_keys * width, head.scale);
    bool first = true;
    for (std::int64_t query = key; query < head.T; query += kAttentionBlock) {
      BlockPair pair{query, min_of(kAttentionBlock, head.T - query), key, num_keys, true};
      const SegmentRange query_range = segment_range<T>(head.segment_ids + query, pair.num_queries);
      if (!meet(query_range, key_range)) continue;
      pair.masked = !(query_range.uniform && key_range.uniform && key + num_keys <= query + 1);
      backward_pair<T>(head, buffers, pair, first);
      first = false;
    }
    if (first)
      for (std::int64_t i = 0; i < num_keys * width; ++i) buffers.dk[i] = buffers.dv[i] = 0.0f;
    for (std::int64_t j = 0; j < num_keys; ++j) {
      store_scaled<T>(dk + (key + j) * stride, buffers.dk + j * width, head.scale, Dh);
      store_scaled<T>(dv + (key + j) * stride, buffers.dv + j * width, 1.0f, Dh);
    }
  }
  for (std::int64_t t = 0; t < head.T; ++t)
    store_scaled<T>(dq + t * stride, buffers.dq + t * width, 1.0f, Dh);
}

template <class T, class Source, class S>
constexpr AttentionKernels<S> attention_kernels() {
  return {&attention_forward_scratch<T>, &attention_backward_scratch<T>,
          &attention_forward_head<T, Source, S>, &attention_backward_head<T, Source, S>};
}

}  // namespace openmoe::cpu::body
