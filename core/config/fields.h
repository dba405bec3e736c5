// The JSON keys of a recipe, listed once per struct. Parsing, printing, checking and the key
// reference are visitors of these lists. A visitor is called as visit(key, member, rule, doc) with
// a pointer to the member.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/config/field_rule.h"
#include "core/config/recipe.h"

namespace openmoe {

template <typename Visitor>
void visit_fields(std::type_identity<ModelConfig>, Visitor&& visit) {
  using M = ModelConfig;
  visit("vocab_size", &M::vocab_size, rules::between(2, 2147483647),
        "rows of the embedding, V; at least the tokenizer's pieces and sentinels");
  visit("num_layers", &M::num_layers, rules::between(1, 1024), "transformer layers, L");
  visit("d_model", &M::d_model, rules::between(1, 131072), "width of the residual stream, D");
  visit("num_heads", &M::num_heads, rules::between(1, 4096), "attention heads, H");
  visit("head_dim", &M::head_dim, rules::between(2, 4096), "width of a head, Dh, even");
  visit("ffn_dim", &M::ffn_dim, rules::between(1, 524288),
        "hidden width of the dense FFN, the residual FFN and each expert, F");
  visit("ffn", &M::ffn, rules::any,
        "gated_swiglu: four D*F matrices, as released; swiglu: three, as in the paper's text");
  visit(
      "attention_scale", &M::attention_scale, rules::any,
      "folded: logits are q.k and 1/sqrt(Dh) is in the query's initial value; rsqrt: q.k/sqrt(Dh)");
  visit("tied_embedding", &M::tied_embedding, rules::any, "the output head is the embedding");
  visit("norm_eps", &M::norm_eps, rules::positive, "added to the mean square in RMSNorm");
  visit("rope_base", &M::rope_base, rules::positive, "base of the rotary angles");
  visit("num_experts", &M::num_experts, rules::between(2, 4096), "experts of a MoE layer, E");
  visit("moe_interval", &M::moe_interval, rules::between(0, 1024),
        "layer i, from 0, is MoE when (i + 1) % moe_interval = 0; 0: dense model");
  visit("residual_ffn", &M::residual_ffn, rules::any,
        "fixed FFN of a MoE layer; sequential: after the experts with its own norm, as released; "
        "parallel: beside them on the same input (Eq. 4)");
  visit("parallel_block", &M::parallel_block, rules::any,
        "attention, experts and FFN of a layer all read one normalised input and add to x; needs "
        "residual_ffn parallel where there are experts");
  visit("init_scale", &M::init_scale, rules::positive,
        "a kernel's initial variance is this / fan_in");
  visit("embedding_init_std", &M::embedding_init_std, rules::positive, "of the embedding");
  visit("router_init_std", &M::router_init_std, rules::positive, "of the router kernels");
}

template <typename Visitor>
void visit_fields(std::type_identity<RoutingConfig>, Visitor&& visit) {
  using R = RoutingConfig;
  visit("group_tokens", &R::group_tokens, rules::between(1, 16777216),
        "G: routing, capacity and balance loss are per block of G positions of the batch");
  visit("capacity_factor", &R::capacity_factor, rules::between(1e-6, 1e6),
        "slots of an expert in training, relative");
  visit("eval_capacity_factor", &R::eval_capacity_factor, rules::between(1e-6, 1e6),
        "the same in evaluation");
  visit(
      "capacity_counts", &R::capacity_counts, rules::any,
      "tokens: round(cf*G/E) slots; assignments: round(2*cf*G/E); port: floor(2*cf*N/E) made even "
      "over all N positions of a call, as the PyTorch port, not for training; dropless: G, so that "
      "nothing is dropped whatever the factors say, with room for all rows at any expert");
  visit("min_capacity", &R::min_capacity, rules::between(1, 1073741824),
        "least slots of an expert and group");
  visit("normalize_gates", &R::normalize_gates, rules::any,
        "divide a token's two gates by their sum");
  visit("route_padding", &R::route_padding, rules::any,
        "send padding through the router as zero vectors, as the original run did");
}

template <typename Visitor>
void visit_fields(std::type_identity<LossConfig>, Visitor&& visit) {
  using C = LossConfig;
  visit("load_balance_weight", &C::load_balance_weight, rules::not_negative,
        "of the balance loss (Eq. 5)");
  visit("router_z_weight", &C::router_z_weight, rules::not_negative,
        "of the router z-loss (Eq. 7)");
  visit("logits_z_weight", &C::logits_z_weight, rules::not_negative,
        "of (log Z)^2 of the output logits");
}

template <typename Visitor>
void visit_fields(std::type_identity<OptimizerConfig>, Visitor&& visit) {
  using O = OptimizerConfig;
  visit("peak_learning_rate", &O::peak_learning_rate, rules::positive,
        "relative step of the first warmup_steps steps");
  visit("warmup_steps", &O::warmup_steps, rules::between(1, 1e12),
        "lr(t) = peak * sqrt(warmup_steps / max(t, warmup_steps)); flat, no ramp");
  visit("decay_rate", &O::decay_rate, rules::positive,
        "second-moment decay at step t: 1 - (t+1)^-decay_rate");
  visit("clip_threshold", &O::clip_threshold, rules::positive, "on the RMS of a tensor's update");
  visit("epsilon_square", &O::epsilon_square, rules::between(1e-37, 1.0),
        "added to squared gradients");
  visit("epsilon_scale", &O::epsilon_scale, rules::positive,
        "least RMS of a parameter in its step size");
  visit("min_dim_to_factor", &O::min_dim_to_factor, rules::between(1, 1073741824),
        "matrices with both sides at least this keep row and column means only");
  visit("router_frozen_steps", &O::router_frozen_steps, rules::count,
        "routers are not updated before this step; 0: always");
  visit("router_frozen_from", &O::router_frozen_from, rules::count,
        "routers are not updated from this step on; 0: no end");
}

template <typename Visitor>
void visit_fields(std::type_identity<StartConfig>, Visitor&& visit) {
  using S = StartConfig;
  visit("optimizer", &S::optimizer, rules::any,
        "of a run from another's weights (train --from): fresh: from step 0 without statistics; "
        "continued: with its statistics and count of steps");
  visit("upcycle", &S::upcycle, rules::any,
        "the dense FFNs of train --from become experts where this model has MoE layers");
  visit("expert_noise", &S::expert_noise, rules::between(0, 100),
        "added to each expert so made, relative to the RMS of its weights");
}

template <typename Visitor>
void visit_fields(std::type_identity<PhaseConfig>, Visitor&& visit) {
  using P = PhaseConfig;
  visit("objective", &P::objective, rules::required, "what is trained");
  visit("packing", &P::packing, rules::any,
        "faithful: rows as the original built them; packed: rows filled, segments masked from each "
        "other");
  visit("mixture", &P::mixture, rules::required,
        "name of a file in recipes/mixtures, without .json");
  visit("until_step", &P::until_step, rules::count, "first step after the phase; 0: not stated");
  visit("until_positions", &P::until_positions, rules::count,
        "end of the phase in positions (rows * sequence_length), rounded up to a step; 0: not "
        "stated");
  visit("until_real_tokens", &P::until_real_tokens, rules::count,
        "end of the phase in positions that are not padding, as expected of its objective; 0: not "
        "stated");
  visit("until_loss_tokens", &P::until_loss_tokens, rules::count,
        "end of the phase in positions that carry loss, as expected of its objective; 0: not "
        "stated");
  visit("blend_steps", &P::blend_steps, rules::between(0, 1000000),
        "steps over which the rates move linearly from the mixture of the phase before; 0: at "
        "once");
  visit("extra_source", &P::extra_source, rules::any,
        "source mixed in at the start of the phase; empty: none");
  visit("extra_share", &P::extra_share, rules::between(0, 0.99),
        "share of the rows that extra_source has");
  visit("extra_steps", &P::extra_steps, rules::count, "steps for which extra_source is mixed in");
}

template <typename Visitor>
void visit_fields(std::type_identity<DataConfig>, Visitor&& visit) {
  using D = DataConfig;
  visit("sequence_length", &D::sequence_length, rules::between(2, 16777216),
        "positions of a row, T");
  visit("batch_rows", &D::batch_rows, rules::between(1, 16777216), "rows of the global batch, B");
  visit("phases", &D::phases, rules::any, "objectives and mixtures in order of training");
}

template <typename Visitor>
void visit_fields(std::type_identity<ParallelConfig>, Visitor&& visit) {
  using P = ParallelConfig;
  visit("ep", &P::ep, rules::between(1, 4096),
        "ranks that share one set of experts; --ep overrides");
  visit("tp", &P::tp, rules::between(1, 4096),
        "ranks that share every matrix and the rows of a data rank; --tp overrides");
  visit(
      "exchange", &P::exchange, rules::any,
      "how rows travel to their experts: directly, in blocks of fixed size, or first within a node "
      "and then between nodes, which auto takes when there are several");
  visit("exchange_parts", &P::exchange_parts, rules::between(1, 4096),
        "parts in which the experts of a rank are exchanged, so that one travels while another is "
        "computed; at most the experts of a rank");
  visit("ranks_per_node", &P::ranks_per_node, rules::between(0, 4096),
        "ranks of an expert group on a node, for two_level; 0: as the hosts' names say");
  visit("micro_batch_rows", &P::micro_batch_rows, rules::between(0, 16777216),
        "rows a rank computes at once; 0: all of its rows");
  visit("recompute", &P::recompute, rules::any,
        "computed again in the backward instead of kept, with the same bits; ffn: gate and up of "
        "FFNs and experts; attention: q, k, v and output; block: all of a layer but its input and "
        "the routing, for which experts' rows travel once more");
  visit(
      "reduction_bucket_kb", &P::reduction_bucket_kb, rules::between(0, 1 << 30),
      "KiB of gradients that are reduced at once while the backward pass goes on; 0: all after it");
  visit("shard_update", &P::shard_update, rules::any,
        "ranks that hold the same parameters divide their update, optimizer state and, with bf16, "
        "f32 values that only the update reads");
  visit("update_in_backward", &P::update_in_backward, rules::any,
        "update each parameter as soon as its gradient is complete; keeps one gradient at a time");
}

template <typename Visitor>
void visit_fields(std::type_identity<RunConfig>, Visitor&& visit) {
  using R = RunConfig;
  visit("seed", &R::seed, rules::count, "of weights, data order and corruption");
  visit("num_steps", &R::num_steps, rules::between(1, rules::kMaxCount),
        "optimizer steps of the run");
  visit("log_every", &R::log_every, rules::between(1, 1e12), "steps between rows of metrics.jsonl");
  visit("validate_every", &R::validate_every, rules::count, "steps between validations; 0: never");
  visit("validation_rows", &R::validation_rows, rules::between(1, 16777216),
        "held-out rows per source");
  visit("checkpoint_every", &R::checkpoint_every, rules::count,
        "steps between checkpoints; 0: at the end");
  visit("early_checkpoints", &R::early_checkpoints, rules::any,
        "also before the first step and after 1, 2, 4, 8, ... steps, as long as that is less than "
        "checkpoint_every");
  visit("checkpoint_in_background", &R::checkpoint_in_background, rules::any,
        "copy what a checkpoint holds and write its files while training goes on");
  visit("keep_checkpoints", &R::keep_checkpoints, rules::between(1, 1e6),
        "newest checkpoints that are kept");
  visit("keep_every", &R::keep_every, rules::count,
        "checkpoints of multiples of this many steps are kept for good; 0: none");
  visit("on_nonfinite", &R::on_nonfinite, rules::any,
        "when a step's loss or gradient norm is not finite; stop: end the run; skip: leave the "
        "update out and log the step as skipped");
  visit("max_skips", &R::max_skips, rules::between(1, 1e6),
        "steps in a row that may be skipped, or rewinds to one checkpoint; one more ends the run");
  visit("on_spike", &R::on_spike, rules::any,
        "when a loss is spike_z standard deviations above the mean; skip: leave the update out; "
        "rewind: go back to the newest checkpoint and leave the batch out");
  visit("spike_z", &R::spike_z, rules::positive, "standard deviations that make a spike");
  visit("spike_window", &R::spike_window, rules::between(2, 1e6),
        "steps of the same phase that mean and deviation are of; none is a spike before so many");
  visit("spike_batches", &R::spike_batches, rules::between(1, 1e6),
        "batches that a rewind leaves out, the last of them that of the spike");
  visit("replica_check_every", &R::replica_check_every, rules::count,
        "steps between comparisons of parameters that several ranks hold; 0: never");
  visit("straggler_every", &R::straggler_every, rules::count,
        "steps between reports of the rank that computes longest; 0: never");
  visit("compute_type", &R::compute_type, rules::any,
        "storage of activations and of weights in products; sums, parameters, gradients and "
        "optimizer state are f32 with both");
  visit("attention", &R::attention, rules::any,
        "kernels of attention on CUDA devices; auto: cuDNN's where it has them, cudnn: those or an "
        "error, builtin: this program's own");
  visit("routing_every", &R::routing_every, rules::count,
        "steps between statistics of the routers in metrics.jsonl, TensorBoard files and routing "
        "logs; 0: never");
  visit("watchdog_seconds", &R::watchdog_seconds, rules::between(0, 1e6),
        "a rank without progress for so long is named and the job ends (checkpoints, start: ten "
        "times that; a silent process: 20 s at most); 0: never");
  visit("profile", &R::profile, rules::any, "print the time of every op at the end of train");
}

template <typename Visitor>
void visit_fields(std::type_identity<Recipe>, Visitor&& visit) {
  visit("name", &Recipe::name, rules::any, "of the run; the file's name when absent");
  visit("description", &Recipe::description, rules::any, "intent, parameters, tokens, FLOPs");
  visit("model", &Recipe::model, rules::any, "the network");
  visit("routing", &Recipe::routing, rules::any, "which expert takes which token");
  visit("loss", &Recipe::loss, rules::any, "weights of the losses beside cross-entropy");
  visit("optimizer", &Recipe::optimizer, rules::any, "Adafactor and its schedule");
  visit("data", &Recipe::data, rules::any, "batch and schedule of the data");
  visit("start", &Recipe::start, rules::any, "what is taken from another run's weights");
  visit("parallel", &Recipe::parallel, rules::any,
        "defaults of the grid; they do not change results");
  visit("run", &Recipe::run, rules::any, "length and rhythm of the run");
}

}  // namespace openmoe
