// Construction and the order of sublayers. The sublayers themselves: attention_block.cpp,
// ffn_block.cpp, moe_block.cpp, head.cpp; their memory: model_memory.cpp.
#include "core/model/model.h"

#include <algorithm>

namespace openmoe {
namespace {

// The logits of one loss chunk take at most this much memory, but at least so many rows: every
// chunk reads and writes the whole gradient of the head's weight, which few rows do not pay for.
constexpr std::int64_t kLogitsBytes = 64LL << 20;
constexpr std::int64_t kMinLogitsRows = 128;

LayerParams find_layer(ParamTable& params, const ModelConfig& config, std::int64_t index) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const auto get = [&](const std::string& name) { return &params.find(prefix + name); };
  LayerParams layer;
  layer.is_moe = config.is_moe_layer(index);
  layer.attention = {get("input_layernorm.weight"), get("self_attn.q_proj.weight"),
                     get("self_attn.k_proj.weight"), get("self_attn.v_proj.weight"),
                     get("self_attn.o_proj.weight")};
  const bool has_norms = !config.parallel_block;  // beside the first
  Param* norm = has_norms ? get("post_attention_layernorm.weight") : nullptr;
  std::string ffn = "mlp.";
  if (layer.is_moe) {
    layer.moe = {norm, get("mlp.gate_weight"), get("mlp.experts.wi_gate"), get("mlp.experts.wi_up"),
                 get("mlp.experts.wo")};
    ffn = "extra_mlp.";
    norm = has_norms && config.residual_ffn == ResidualFfn::sequential
               ? get("pre_extra_mlp_layernorm.weight")
               : nullptr;
  }
  layer.ffn = {norm, get(ffn + "gate_proj.weight"), get(ffn + "up_proj.weight"),
               get(ffn + "down_proj.weight")};
  return layer;
}

}  // namespace

Model::Model(Ops& ops, const Recipe& recipe, ParamTable& params, TokenExchange& exchange,
             TensorGroup& tensor, std::int64_t rows)
    : ops_(ops),
      config_(recipe.model),
      routing_(recipe.routing.of_call(rows * recipe.data.sequence_length)),
      loss_(recipe.loss),
      params_(params),
      exchange_(exchange),
      tensor_(tensor),
      compute_(recipe.run.compute_type == ComputeType::bf16 ? DType::bf16 : DType::f32),
      recompute_(recipe.parallel.recompute),
      recompute_ffn_(recompute_ == Recompute::ffn || recompute_ == Recompute::block),
      rows_(rows),
      length_(recipe.data.sequence_length),
      embedding_(&params.find("model.embed_tokens.weight")),
      final_norm_(&params.find("model.norm.weight")),
      head_(config_.tied_embedding ? embedding_ : &params.find("lm_head.weight")) {
  const std::int64_t tp = tensor.size();
  OPENMOE_CHECK(num_tokens() % tp == 0 && config_.d_model % tp == 0, num_tokens(),
                " tokens of width ", config_.d_model, " over ", tp, " ranks");
  share_ = {.num_tokens = num_tokens() / tp,
            .d_columns = config_.d_model / tp,
            .num_heads = config_.num_heads / tp,
            .attention_dim = config_.attention_dim() / tp,
            .ffn_dim = config_.ffn_dim / tp,
            .gate_dim = config_.gate_dim() / tp,
            .vocab_size = head_->local_shape[0]};
  if (tp > 1)
    vocabulary_ = {{.first = head_->tensor_slice.ranges[0].begin, .total = config_.vocab_size},
                   [this](std::span<LogitSums> sums) { tensor_.combine(sums); }};
  // The same on all ranks of a tensor group, whose parts of the vocabulary may differ by one.
  const std::int64_t columns = (config_.vocab_size + tp - 1) / tp;
  const std::int64_t fitting = kLogitsBytes / (columns * size_of(DType::f32));
  loss_chunk_rows_ = std::min(num_tokens(), std::max(kMinLogitsRows, fitting));
  for (std::int64_t i = 0; i < config_.num_layers; ++i)
    layers_.push_back(find_layer(params, config_, i));
  if (config_.num_moe_layers() == 0) return;
  const auto tokens = static_cast<std::size_t>(num_tokens());
  const std::size_t groups = tokens / static_cast<std::size_t>(routing_.group_tokens);
  host_picks_.resize(groups * static_cast<std::size_t>(config_.num_experts));
  host_prob_.resize(host_picks_.size());
  host_routed_.resize(groups);
  host_z_.resize(groups);
  host_slot_.resize(2 * tokens);
  host_wanted_.resize(tokens);
}

ExchangeShape Model::exchange_shape(const Recipe& recipe, std::int64_t rows, std::int64_t tp) {
  const std::int64_t experts = recipe.model.num_experts;
  const std::int64_t num_tokens = rows * recipe.data.sequence_length;
  const RoutingConfig routing = recipe.routing.of_call(num_tokens);
  const bool has_moe = recipe.model.num_moe_layers() > 0;
  return {.num_tokens = num_tokens,
          .num_experts = experts,
          .group_tokens = has_moe ? routing.group_tokens : num_tokens,
          .capacity = std::max(routing.capacity(experts, true), routing.capacity(experts, false)),
          .d_model = recipe.model.d_model / tp};
}

void Model::load_batch(const Batch& batch) {
  OPENMOE_CHECK(batch.num_rows == rows_ && batch.sequence_length == length_, "batch of ",
                batch.num_rows, " x ", batch.sequence_length, " for a model of ", rows_, " x ",
                length_);
  const auto load = [&](Tensor dst, const auto& values) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    ops_.copy(dst, host_view(const_cast<T*>(values.data()), dst.shape));
  };
  load(batch_.inputs, batch.inputs);
  load(batch_.targets, batch.targets);
  load(batch_.loss_weights, batch.loss_weights);
  load(batch_.segment_ids, batch.segment_ids);
  if (routing_.route_padding)
    load_ones(batch_.routed);
  else
    load(batch_.routed, batch.segment_ids);
}

void Model::load_ones(Tensor dst) {
  std::fill(host_wanted_.begin(), host_wanted_.end(), 1);
  ops_.copy(dst, host_view(host_wanted_.data(), dst.shape));
}

void Model::train(const Batch& batch, const BatchCounts& counts, StepSums& sums) {
  load_batch(batch);
  forward(true, sums);
  // Without a single loss token every weight is 0 and the scale has no effect; it must only not be
  // 0, which means evaluation.
  const float scale =
      counts.loss_weight > 0.0 ? static_cast<float>(1.0 / counts.loss_weight) : 1.0f;
  ops_.enter_layer(-1, Pass::forward);
  head(scale, sums, {});
  backward(counts);
}

void Model::evaluate(const Batch& batch, StepSums& sums, Tensor token_loss) {
  load_batch(batch);
  forward(false, sums);
  head(0.0f, sums, token_loss);
}

void Model::forward(bool training, StepSums& sums) {
  ops_.enter_layer(-1, Pass::forward);
  ops_.enter("embedding");
  const Tensor x_first = activations_.empty() ? x_final_ : activations_[0].x_attention;
  ops_.embedding_forward(is_alone() ? x_first : scratch_.dy, embedding_->value, batch_.inputs,
                         vocabulary_.range);
  if (!is_alone()) {
    tensor_.sum_rows(scratch_.dy);
    ops_.copy(x_first, own(scratch_.dy));
  }
  std::size_t moe_index = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    ops_.enter_layer(static_cast<std::int64_t>(i), Pass::forward);
    const LayerParams& params = layers_[i];
    LayerActivations& act = activations_[i];
    const Tensor x_next = i + 1 < layers_.size() ? activations_[i + 1].x_attention : x_final_;
    if (config_.parallel_block)
      parallel_layer_forward(params, act, x_next, training);
    else
      layer_forward(params, act, x_next, training);
    if (params.is_moe) collect(act.moe, sums.moe[moe_index++]);
  }
}

void Model::layer_forward(const LayerParams& params, LayerActivations& act, Tensor x_next,
                          bool training) {
  ops_.enter("attention");
  gather_normalized(*params.attention.norm, act.attention.rstd, act.x_attention);
  attention_forward(params.attention, act.attention, params.is_moe ? act.x_moe : act.x_ffn,
                    act.x_attention);
  if (params.is_moe) {
    const bool parallel = params.ffn.norm == nullptr;
    const Tensor sum = parallel ? x_next : act.x_ffn;
    ops_.enter("experts");
    normalize(*params.moe.norm, act.moe.rstd, act.x_moe);
    route(params.moe, act.moe, training);
    dispatch_rows(act.moe);
    compute_experts(params.moe, act.moe);
    ops_.copy(sum, act.x_moe);
    add_experts(act.moe, sum);
    if (parallel) {  // x_next already holds x + moe(y); add ffn of the same y
      tensor_.gather_rows(scratch_.y);
      ffn_forward(params.ffn, act.ffn, x_next);
      return;
    }
  }
  ops_.enter("ffn");
  gather_normalized(*params.ffn.norm, act.ffn.rstd, act.x_ffn);
  ops_.copy(x_next, act.x_ffn);
  ffn_forward(params.ffn, act.ffn, x_next);
}

// x' = x + attention(y) + moe(y) + ffn(y). Rows are on their way to the experts while attention is
// computed; it leaves the scratch of the experts alone.
void Model::parallel_layer_forward(const LayerParams& params, LayerActivations& act, Tensor x_next,
                                   bool training) {
  ops_.enter("attention");
  gather_normalized(*params.attention.norm, act.attention.rstd, act.x_attention);
  if (params.is_moe) {
    route(params.moe, act.moe, training);
    dispatch_rows(act.moe);
  }
  attention_forward(params.attention, act.attention, x_next, act.x_attention);
  if (params.is_moe) {
    compute_experts(params.moe, act.moe);
    add_experts(act.moe, x_next);
  }
  ffn_forward(params.ffn, act.ffn, x_next);
}

// What forward() left inside the layer, from its input and the routing. No parameter of the layer
// may have changed since. Outputs that nothing reads are left out, and so is the dense FFN, which
// ffn_backward computes again itself.
void Model::recompute_layer(const LayerParams& params, LayerActivations& act) {
  ops_.enter("attention");
  gather_normalized(*params.attention.norm, act.attention.rstd, act.x_attention);
  if (config_.parallel_block) {
    if (params.is_moe) dispatch_rows(act.moe);
    ops_.enter("attention");
    attention_output(params.attention, act.attention);
    if (params.is_moe) compute_experts(params.moe, act.moe);
    return;
  }
  attention_forward(params.attention, act.attention, params.is_moe ? act.x_moe : act.x_ffn,
                    act.x_attention);
  if (!params.is_moe) return;
  ops_.enter("experts");
  normalize(*params.moe.norm, act.moe.rstd, act.x_moe);
  dispatch_rows(act.moe);
  compute_experts(params.moe, act.moe);
  if (params.ffn.norm == nullptr) return;
  ops_.copy(act.x_ffn, act.x_moe);
  add_experts(act.moe, act.x_ffn);
}

void Model::layer_backward(const LayerParams& params, LayerActivations& act,
                           const BatchCounts& counts) {
  const Tensor dy = scratch_.dy;
  const bool parallel = params.is_moe && params.ffn.norm == nullptr;
  if (!parallel) {
    ops_.enter("ffn");
    gather_normalized(*params.ffn.norm, act.ffn.rstd, act.x_ffn);
    ffn_backward(params.ffn, act.ffn, dx_operand(), false);
    tensor_.sum_rows(dy);
    norm_backward(*params.ffn.norm, act.x_ffn, act.ffn.rstd);
  }
  if (params.is_moe) {
    ops_.enter("experts");
    normalize(*params.moe.norm, act.moe.rstd, act.x_moe);
    moe_backward(params.moe, act.moe, counts);
    if (parallel) {
      ops_.enter("ffn");
      tensor_.gather_rows(scratch_.y);
      ffn_backward(params.ffn, act.ffn, dx_operand(), true);
      tensor_.sum_rows(dy);
    }
    norm_backward(*params.moe.norm, act.x_moe, act.moe.rstd);
  }
  ops_.enter("attention");
  gather_normalized(*params.attention.norm, act.attention.rstd, act.x_attention);
  attention_backward(params.attention, act.attention, dx_operand(), false);
  tensor_.sum_rows(dy);
  norm_backward(*params.attention.norm, act.x_attention, act.attention.rstd);
}

// x' = x + attention(y) + moe(y) + ffn(y): their gradients of y add up, over ranks once.
void Model::parallel_layer_backward(const LayerParams& params, LayerActivations& act,
                                    const BatchCounts& counts) {
  ops_.enter("attention");
  if (recompute_ != Recompute::block)  // which has just left it in scratch
    gather_normalized(*params.attention.norm, act.attention.rstd, act.x_attention);
  if (params.is_moe) moe_backward(params.moe, act.moe, counts);
  ops_.enter("ffn");
  const Tensor dx = dx_operand();
  ffn_backward(params.ffn, act.ffn, dx, params.is_moe);
  attention_backward(params.attention, act.attention, dx, true);
  tensor_.sum_rows(scratch_.dy);
  norm_backward(*params.attention.norm, act.x_attention, act.attention.rstd);
}

void Model::backward(const BatchCounts& counts) {
  // scratch_.dx holds d total / d x of the layer's output and becomes that of its input.
  for (std::size_t i = layers_.size(); i-- > 0;) {
    ops_.enter_layer(static_cast<std::int64_t>(i), Pass::backward);
    if (recompute_ == Recompute::block) recompute_layer(layers_[i], activations_[i]);
    if (config_.parallel_block)
      parallel_layer_backward(layers_[i], activations_[i], counts);
    else
      layer_backward(layers_[i], activations_[i], counts);
  }
  ops_.enter_layer(-1, Pass::backward);
  ops_.enter("embedding");
  if (!is_alone()) {
    ops_.copy(own(scratch_.dy), scratch_.dx);
    tensor_.gather_rows(scratch_.dy);
  }
  ops_.embedding_backward(embedding_->grad, is_alone() ? scratch_.dx : scratch_.dy, batch_.inputs,
                          vocabulary_.range);
  complete(*embedding_);
}

void Model::normalize(const Param& norm, Tensor rstd, Tensor x) {
  ops_.rms_norm_forward(own(scratch_.y), rstd, x, norm.value, own(batch_.segment_ids),
                        static_cast<float>(config_.norm_eps));
}

void Model::gather_normalized(const Param& norm, Tensor rstd, Tensor x) {
  normalize(norm, rstd, x);
  tensor_.gather_rows(scratch_.y);
}

void Model::norm_backward(Param& norm, Tensor x, Tensor rstd) {
  ops_.rms_norm_backward_accumulate(scratch_.dx, norm.grad, own(scratch_.dy), x, norm.value,
                                    own(batch_.segment_ids), rstd);
  complete(norm);
}

Tensor Model::dx_operand() {
  if (compute_ != DType::f32) ops_.convert(own(scratch_.dx_operand), scratch_.dx);
  tensor_.gather_rows(scratch_.dx_operand);
  return scratch_.dx_operand;
}

void Model::project_accumulate(Tensor x, Tensor h, const Param& weight) {
  if (is_alone()) {
    ops_.linear_forward_accumulate(x, h, weight.operand);
    return;
  }
  ops_.linear_forward(scratch_.dy, h, weight.operand);
  tensor_.sum_rows(scratch_.dy);
  ops_.add_accumulate(x, own(scratch_.dy));
}

Tensor Model::columns_of(Tensor columns, Tensor own_rows) {
  if (is_alone()) return own_rows;
  tensor_.rows_to_columns(columns, own_rows);
  return columns;
}

std::vector<const MoeActivations*> Model::moe_activations() const {
  std::vector<const MoeActivations*> found;
  for (std::size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i].is_moe) found.push_back(&activations_[i].moe);
  return found;
}

}  // namespace openmoe
