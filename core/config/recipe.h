// Recipe: everything that changes the result of a run, as plain structs. Paths, rank counts and
// devices come from the command line. Defaults are the released (as-trained) semantics of OpenMoE;
// each place where the paper's text differs from the code that trained the released weights is one
// option here (see README, "Released and paper semantics").
//
// One visitor per struct (fields.h) lists the JSON keys once; parsing, printing, checking, hashing
// and the recipe reference all follow from that list.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace openmoe {

enum class FfnKind { gated_swiglu, swiglu };
enum class ResidualFfn { sequential, parallel };
enum class AttentionScale { folded, rsqrt };
enum class CapacityCounts { tokens, assignments, port, dropless };
enum class ObjectiveKind { ul2, causal_lm, span_corruption, prefix_lm, sft };
enum class Packing { faithful, packed };
enum class RateUnit { rows, tokens };
enum class OptimizerStart { fresh, continued };
enum class ComputeType { f32, bf16 };
// What the backward pass computes again instead of keeping it; see ParallelConfig.
enum class Recompute { none, ffn, attention, block };
// How rows travel to their experts; see parallel/row_transport.h.
enum class ExchangeKind { automatic, direct, fixed_capacity, two_level };
// Whose attention kernels a CUDA device runs; see Ops::choose_attention.
enum class AttentionKind { automatic, cudnn, builtin };
enum class OnNonFinite { stop, skip };
enum class OnSpike { ignore, skip, rewind };

struct ModelConfig {
  // V, embedding rows; at least the tokenizer's pieces and sentinels
  std::int64_t vocab_size = 256384;
  std::int64_t num_layers = 12;  // L
  std::int64_t d_model = 768;    // D
  std::int64_t num_heads = 12;   // H
  std::int64_t head_dim = 64;    // Dh, even
  std::int64_t ffn_dim = 2048;   // F, of dense FFN, residual FFN and each expert
  // gated_swiglu: (x W0a * swish(x W0b) * x W1) Wo, four D*F blocks (released)
  // swiglu: (swish(x W0) * x W1) Wo (paper 2.5)
  FfnKind ffn = FfnKind::gated_swiglu;
  // folded: no 1/sqrt(Dh) at run time, it is in the q init
  AttentionScale attention_scale = AttentionScale::folded;
  bool tied_embedding = false;
  double norm_eps = 1e-6;
  double rope_base = 10000.0;
  std::int64_t num_experts = 16;  // E
  // layer i (from 0) is MoE when (i + 1) % moe_interval == 0; 0: dense model
  std::int64_t moe_interval = 4;
  ResidualFfn residual_ffn = ResidualFfn::sequential;  // parallel: Eq. 4 of the paper
  // A layer's sublayers all read one normalised input, x' = x + attention(y) + ffn(y) [+ moe(y)]
  // (Wang and Komatsuzaki 2021; PaLM, Chowdhery et al. 2022, section 2; the paper's Section 5).
  bool parallel_block = false;
  double init_scale = 0.1;  // variance of a kernel is init_scale / fan_in
  double embedding_init_std = 1.0;
  double router_init_std = 0.02;

  bool is_moe_layer(std::int64_t layer) const {
    return moe_interval > 0 && (layer + 1) % moe_interval == 0;
  }
  std::int64_t num_moe_layers() const { return moe_interval > 0 ? num_layers / moe_interval : 0; }
  std::int64_t attention_dim() const { return num_heads * head_dim; }  // A
  // What the logits of attention are multiplied with.
  float logit_scale() const {
    return attention_scale == AttentionScale::rsqrt
               ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))
               : 1.0f;
  }
  // Fg
  std::int64_t gate_dim() const { return ffn == FfnKind::gated_swiglu ? 2 * ffn_dim : ffn_dim; }
};

struct RoutingConfig {
  // G: routing, capacity and the balance loss are per block of G consecutive positions
  std::int64_t group_tokens = 4096;
  double capacity_factor = 1.25;
  double eval_capacity_factor = 2.0;
  // tokens: round(cf*G/E); assignments: round(2*cf*G/E); port: floor(2*cf*G/E) made even, with one
  // group of all positions of a call, as the PyTorch port that runs the released weights. Results
  // then depend on how rows are batched, so it is for evaluation and generation only. dropless: G
  // slots, as many as a group has tokens, so that none is ever dropped; capacity factors and
  // min_capacity have no effect. Experts may then receive all rows, and buffers are sized for it.
  CapacityCounts capacity_counts = CapacityCounts::tokens;
  std::int64_t min_capacity = 4;
  bool normalize_gates = false;  // divide the two gates by their sum
  // true: padding enters the router as zero vectors, as in the original run
  bool route_padding = false;

  // Slots per (group, expert), C: max(min_capacity, the value above, rounded half to even).
  std::int64_t capacity(std::int64_t num_experts, bool training) const;
  // The routing of one call of the model over `num_tokens` positions: the same, but with port the
  // group is the call.
  RoutingConfig of_call(std::int64_t num_tokens) const;
};

struct LossConfig {
  double load_balance_weight = 0.01;
  double router_z_weight = 1e-4;
  double logits_z_weight = 1e-4;
};

// Adafactor with parameter scaling (Shazeer and Stern 2018; t5x variant) and the
// inverse-square-root schedule: lr(t) = peak_learning_rate * sqrt(warmup_steps) / sqrt(max(t,
// warmup_steps)), t from 0.
struct OptimizerConfig {
  double peak_learning_rate = 0.01;
  std::int64_t warmup_steps = 10000;
  double decay_rate = 0.8;  // second-moment decay at step t: 1 - (t + 1)^-decay_rate
  double clip_threshold = 1.0;
  double epsilon_square = 1e-30;
  double epsilon_scale = 1e-3;
  std::int64_t min_dim_to_factor = 128;
  std::int64_t router_frozen_steps = 0;  // routers are not updated before this step
  // nor from this step on (the paper's Section 5: a router frozen after the warm-up); 0: no end
  std::int64_t router_frozen_from = 0;

  bool routers_learn(std::int64_t step) const {
    return step >= router_frozen_steps && (router_frozen_from == 0 || step < router_frozen_from);
  }
};

// One stretch of training. The first phase starts at step 0; each later one where the one before
// ends.
struct PhaseConfig {
  ObjectiveKind objective = ObjectiveKind::ul2;
  Packing packing = Packing::faithful;  // packed: fill rows, segments masked from each other
  std::string mixture;                  // name of a mixture file, without folder and ".json"
  // Where the phase ends, counted from step 0 and rounded up to a whole step: exactly one of the
  // four, except in the last phase, which may have none.
  std::int64_t until_step = 0;         // 0: not stated
  std::int64_t until_positions = 0;    // rows * sequence_length
  std::int64_t until_real_tokens = 0;  // positions that are not padding, in expectation
  std::int64_t until_loss_tokens = 0;  // positions that carry loss, in expectation
  // Steps at the phase's start over which the rates move linearly from the mixture of the phase
  // before to this one; 0: a sudden switch.
  std::int64_t blend_steps = 0;
  // A source mixed in during the first extra_steps steps of the phase with this share of the rows
  // (the paper's Section 5: instruction data during warm-up, to balance the router early).
  std::string extra_source;
  double extra_share = 0.0;
  std::int64_t extra_steps = 0;
};

struct DataConfig {
  std::int64_t sequence_length = 2048;  // T
  std::int64_t batch_rows = 128;        // rows of the global batch
  std::vector<PhaseConfig> phases;
};

// How a run begins that takes its weights from another one (train --from); unused otherwise.
struct StartConfig {
  // fresh: step 0, empty statistics. continued: the source's statistics, and its count of steps
  // goes on, which is what the decay of statistics and the learning rate depend on.
  OptimizerStart optimizer = OptimizerStart::fresh;
  // The source's dense FFNs become the experts of the layers that are MoE here.
  bool upcycle = false;
  double expert_noise = 0.0;  // added to each copy, relative to the RMS of the weights
};

struct ParallelConfig {
  std::int64_t ep = 1;  // default expert-parallel degree; --ep overrides
  std::int64_t tp = 1;  // default tensor-parallel degree; --tp overrides
  ExchangeKind exchange = ExchangeKind::automatic;
  // The experts of a rank are exchanged in so many parts, at most one for each: while one travels,
  // another is computed.
  std::int64_t exchange_parts = 1;
  // of an expert group, for two_level; 0: as the hosts' names say
  std::int64_t ranks_per_node = 0;
  std::int64_t micro_batch_rows = 0;  // rows a rank computes at once; 0: all its rows
  // Less memory for more arithmetic, the same bits. Computed again in the backward instead of kept:
  //   ffn        the two wide activations of every FFN and expert
  //   attention  q, k, v, the output and log Z of every attention
  //   block      all of a layer but its input, the router's output and the routing; experts' rows
  //              travel once more
  Recompute recompute = Recompute::none;
  // Gradients are reduced over ranks in buckets of at least this size as the backward pass
  // completes them; 0: all of them after it.
  std::int64_t reduction_bucket_kb = 0;
  // The ranks that hold the same parameters divide the work of updating them, the optimizer's
  // state, and with bf16 the f32 values of what products read.
  bool shard_update = false;
  // Every parameter is updated as soon as its gradient is complete, so that one gradient at a time
  // is in memory; the same bits. Needs all rows of a rank in one micro-batch.
  bool update_in_backward = false;
};

struct RunConfig {
  std::int64_t seed = 1;
  std::int64_t num_steps = 500000;
  std::int64_t log_every = 1;
  std::int64_t validate_every = 0;       // 0: never
  std::int64_t validation_rows = 32;     // per source
  std::int64_t checkpoint_every = 1000;  // 0: only at the end
  // also before the first step and after steps 1, 2, 4, 8, ... below checkpoint_every
  bool early_checkpoints = false;
  // The files of a checkpoint are written from a copy in memory while the next steps are trained.
  bool checkpoint_in_background = false;
  std::int64_t keep_checkpoints = 2;
  std::int64_t keep_every = 0;  // checkpoints of multiples of so many steps stay besides; 0: none
  // When a loss or the norm of a gradient is not finite: stop, or leave the update out, log the
  // step as skipped and go on.
  OnNonFinite on_nonfinite = OnNonFinite::stop;
  std::int64_t max_skips = 10;  // in a row; one more stops the run
  // When a step's loss lies more than spike_z standard deviations above the mean of the last
  // spike_window steps of the same phase: nothing; leave the update out; or also go back to the
  // newest checkpoint and leave out the spike_batches batches that end with this one.
  OnSpike on_spike = OnSpike::ignore;
  double spike_z = 6.0;
  std::int64_t spike_window = 100;
  std::int64_t spike_batches = 1;
  // Steps between comparisons of the parameters that ranks hold in common; 0: never
  std::int64_t replica_check_every = 100;
  std::int64_t straggler_every = 100;  // steps between reports of the slowest rank; 0: never
  // Storage of activations and of the weights that products read; parameters, their gradients and
  // the optimizer's state are f32 in either case, and so are checkpoints.
  ComputeType compute_type = ComputeType::f32;
  // On CUDA devices: cuDNN's fused kernels where they can do it (auto), by all means (cudnn), or
  // this program's own (builtin). The CPU has its own only.
  AttentionKind attention = AttentionKind::automatic;
  // Steps between statistics of the routers (apps/routing_monitor.h); 0: never
  std::int64_t routing_every = 0;
  // Seconds after which a rank that makes no progress is named and the job ends; 0: never. A
  // process that is silent is named after 20 s already.
  std::int64_t watchdog_seconds = 600;
  bool profile = false;  // time every op and print the table at the end
};

struct Recipe {
  std::string name;
  std::string description;
  ModelConfig model;
  RoutingConfig routing;
  LossConfig loss;
  OptimizerConfig optimizer;
  DataConfig data;
  StartConfig start;
  ParallelConfig parallel;
  RunConfig run;
};

}  // namespace openmoe
