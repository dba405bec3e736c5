// Decoder: the network of core/model forward only, token by token, with a cache of keys and values;
// on the CPU, in f32 arithmetic over weights stored as f32 or bf16.
//
// One call takes any rows: a whole prompt of one sequence, the next token of many, or both. Each
// row's result is a fixed sequence of operations that depends on its own sequence alone, so neither
// the batch, nor how a prompt is cut, nor the number of threads or ranks changes a bit of it;
// unless experts have a capacity, which couples the rows of a call.
//
// Ranks, ep x tp of them, make the same calls. Each expert lives on the tp ranks of one ep_rank;
// outputs are summed over ep: a token has two experts, so the sum has two terms and no order. The
// tp ranks share every matrix by rows of its outputs (DecodeWeights) and gather the pieces: heads
// and their cache of keys and values, columns of h and of the residual stream, and the vocabulary.
// So each dot product is computed whole, by one rank, in the order of one rank alone. Splitting the
// inputs of every second product instead, as training on such grids does to halve the number of
// collectives, would add partial sums of rounded values: other bits on every grid.
//
// Collectives of a call, which generates one token of each sequence: over tp one sum (embedding),
// per layer four gathers (of o, its projection, h, its projection) and two more in MoE layers (h
// and output of the experts), and one gather per row of logits: 2 + 4L + 2 L_moe for one sequence.
// Over ep one sum per MoE layer, of the columns this rank has, so that its size falls with tp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/infer/decode_weights.h"

namespace openmoe::infer {

struct DecodeOptions {
  std::int64_t max_sequences = 1;
  std::int64_t max_length = 2048;  // positions of a sequence
  // Slots of an expert in one call, by this rule over the call's tokens (RoutingConfig::capacity,
  // evaluation); first choices of all rows are served before second choices, in the order of rows.
  // Without a value nothing is dropped.
  std::optional<CapacityCounts> capacity = {};
};

// One token to process: it stands at `position` of the sequence in cache slot `sequence`.
struct DecodeRow {
  std::int64_t sequence = 0;
  std::int64_t position = 0;
  std::int32_t token = 0;
  bool wants_logits = false;
};

// What the ranks of a decoding job do together, in place. Empty where a group has one rank.
struct DecodeGroups {
  using Sum = std::function<void(std::span<float>)>;
  // Of pieces back to back in rank order, counts[r] elements of rank r, where each rank has filled
  // its own.
  using Gather = std::function<void(std::span<float>, std::span<const std::int64_t> counts)>;

  Sum expert_sum;  // over the ep ranks with the same tp_rank
  Sum tensor_sum;  // over the tp ranks with the same ep_rank, and so is the gather
  Gather tensor_gather;
};

class Decoder {
 public:
  // `weights` must outlive this.
  Decoder(const DecodeWeights& weights, const RoutingConfig& routing, const DecodeOptions& options,
          DecodeGroups groups = {});

  // Rows of one sequence stand in rising order of position and continue what its slot holds:
  // positions below a row's own must have been written by this call or earlier ones. Writing
  // position p makes everything beyond it stale. Returns the number of rows that want logits.
  std::int64_t forward(std::span<const DecodeRow> rows);
  // Logits (end - begin, V), V apart, of rows [begin, end) among those of the last forward that
  // wanted them; valid until the next call.
  std::span<float> logits(std::int64_t begin, std::int64_t end);

  // Makes slot `to` hold the first `length` positions of slot `from`.
  void copy_prefix(std::int64_t to, std::int64_t from, std::int64_t length);

  const ModelConfig& model() const { return weights_.model(); }
  const DecodeOptions& options() const { return options_; }
  std::int64_t cache_bytes() const;  // keys and values of this rank's heads
  // Assignments that no slot was left for, since construction.
  std::int64_t num_dropped() const { return num_dropped_; }

 private:
  // Keys and values of one layer, see AttentionQuery; each (max_sequences, this rank's heads, ...).
  struct LayerCache {
    Block keys, values;
  };
  struct Assignment {
    std::int64_t row = 0, expert = 0;
    float gate = 0.0f;
    std::int64_t place = -1;  // among the rows this rank's experts compute
  };

  void reserve(std::int64_t rows);
  void attention(const LayerWeights& layer, LayerCache& cache, std::span<const DecodeRow> rows);
  void rotate_and_store(LayerCache& cache, std::span<const DecodeRow> rows);
  // x += ffn(y)
  void ffn(const FfnWeights& weights, std::int64_t num_rows);
  void route(const LayerWeights& layer, std::int64_t num_rows);
  void moe(const LayerWeights& layer, std::int64_t num_rows);
  void norm(const std::vector<float>& weight, std::int64_t num_rows);
  std::int64_t num_heads() const { return weights_.splits().attention.size() / model().head_dim; }
  // x = rows of the embedding
  void embed(std::span<const DecodeRow> rows);
  // Rows (num_rows, split.total()), `ld` apart, of which every rank has its own columns: whole on
  // every rank. `of_experts`: these are summed over the expert group first.
  void gather(const Split& split, float* rows, std::int64_t ld, std::int64_t num_rows,
              bool of_experts = false);

  const DecodeWeights& weights_;
  RoutingConfig routing_;
  DecodeOptions options_;
  DecodeGroups groups_;
  std::int64_t cache_length_;               // max_length in whole chunks
  std::vector<float> rope_cos_, rope_sin_;  // (max_length, Dh / 2)
  std::vector<LayerCache> caches_;
  std::int64_t num_dropped_ = 0;
  std::int64_t num_wanted_ = 0;

  // Rows of one call, each padded to whole chunks (width + p): N = rows reserved. Those of q, k, v,
  // gate and up are as wide as this rank's share; the others are whole once gathered.
  std::int64_t reserved_ = 0;
  std::vector<float> x_, y_, out_;    // (N, D+p): residual stream, normalised, sublayer's output
  std::vector<float> q_, k_, v_, o_;  // (N, A+p)
  std::vector<float> gate_, up_, h_;  // (N, Fg+p), (N, F+p), (N, F+p)
  std::vector<float> expert_x_, expert_out_;               // (2N, D+p)
  std::vector<float> expert_gate_, expert_up_, expert_h_;  // (2N, ...)
  std::vector<float> router_logits_;                       // (N, E)
  std::vector<Assignment> assignments_;     // (2N): the two of row n at 2n and 2n + 1
  std::vector<std::int64_t> expert_begin_;  // (El + 1): places of each local expert
  std::vector<float> scores_;               // (threads, cache_length)
  std::vector<float> logits_;               // (n, V)
  std::vector<float> pieces_;               // of a gather: (rank, N, its columns)
};

}  // namespace openmoe::infer
