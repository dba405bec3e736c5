// Model: the decoder-only transformer with mixture-of-experts layers (OpenMoE, Xue et al. 2024;
// ST-MoE, Zoph et al. 2022), forward and backward by hand, over one micro-batch. It knows Ops,
// TokenExchange and TensorGroup; no MPI, no CUDA.
//
//   x = embedding(inputs)
//   each layer:  x += attention(rms_norm(x))
//                dense layer: x += ffn(rms_norm(x))
//                MoE layer:   sequential (released): x += moe(rms_norm(x)); x += ffn(rms_norm'(x))
//                             parallel (paper Eq. 4): y = rms_norm(x); x += moe(y) + ffn(y)
//   each layer of a parallel_block model:
//                y = rms_norm(x); x += attention(y) + ffn(y), in a MoE layer + moe(y)
//   loss = cross_entropy(head(rms_norm(x))) + logits z-loss + load-balance + router z-loss
//
// The P ranks of a tensor group compute the same rows. Each has H/P heads, F/P of the width of
// every FFN and expert, and its part of the vocabulary; of the residual stream, of what is
// normalised and of their gradients it has N/P rows ("by rows" in core/tensor_group.h). So a
// sublayer gathers its normalised input, computes with its share of the weights, and adds up the
// results by rows. Rows travel to experts and back by columns, D/P on each rank: what goes between
// expert ranks does not grow with P. The router's decisions are made by all ranks of the group
// alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/activations.h"
#include "core/model/layer_params.h"
#include "core/model/step_stats.h"
#include "core/moe/token_exchange.h"
#include "core/ops.h"
#include "core/param_table.h"
#include "core/tensor_group.h"

namespace openmoe {

class Model {
 public:
  // `rows` of a micro-batch: whole routing groups. `exchange` is not used by a dense model.
  // `params` are those of this rank of `tensor`, whose size divides d_model and the tokens of a
  // micro-batch. All references must outlive this.
  Model(Ops& ops, const Recipe& recipe, ParamTable& params, TokenExchange& exchange,
        TensorGroup& tensor, std::int64_t rows);

  // Every activation. `training` false leaves out what only the backward needs.
  void allocate(Arena& arena, bool training);

  // Forward and backward of one micro-batch: adds to every Param::grad and to `sums`. `counts` are
  // those of the whole global batch.
  void train(const Batch& batch, const BatchCounts& counts, StepSums& sums);
  // Forward alone, with the evaluation capacity. token_loss (B, T) f32 on the host receives the
  // weighted cross-entropy of each position unless it is empty; a device's only where the model was
  // allocated without training.
  void evaluate(const Batch& batch, StepSums& sums, Tensor token_loss = {});

  // Called in train() for each parameter, or for each of the slices (Param::slice) it falls into,
  // when its gradient is complete for this micro-batch and nothing will read its value any more; no
  // other gradient is in use then but complete ones and a tied embedding's. The first call comes
  // when all sums of the micro-batch are made.
  using GradientObserver = std::function<void(Param&)>;
  void observe_gradients(GradientObserver observer) { gradient_observer_ = std::move(observer); }
  // Called with (first token, logits (n, V)) for each loss chunk, before the loss overwrites the
  // logits; of a shared vocabulary, with the columns of this rank.
  using LogitsObserver = std::function<void(std::int64_t, Tensor)>;
  void observe_logits(LogitsObserver observer) { logits_observer_ = std::move(observer); }
  // Called with the routers' logits (N, E) f32 of each MoE layer before anything is chosen; may
  // overwrite them, the same way on every rank of a tensor group.
  using RouterOverride = std::function<void(Tensor)>;
  void override_router_logits(RouterOverride set) { router_override_ = std::move(set); }
  // Routing of the last forward pass, one per MoE layer.
  std::vector<const MoeActivations*> moe_activations() const;

  std::int64_t rows() const { return rows_; }
  // Tokens whose logits exist at once.
  std::int64_t loss_chunk_rows() const { return loss_chunk_rows_; }
  std::int64_t num_tokens() const { return rows_ * length_; }
  // What an exchange for this model and micro-batch must hold on a rank of a tensor group of `tp`.
  // A dense model uses none; its shape is merely valid.
  static ExchangeShape exchange_shape(const Recipe& recipe, std::int64_t rows, std::int64_t tp);

 private:
  void load_batch(const Batch& batch);
  void load_ones(Tensor dst);
  void forward(bool training, StepSums& sums);
  void backward(const BatchCounts& counts);
  void layer_forward(const LayerParams& params, LayerActivations& act, Tensor x_next,
                     bool training);
  void layer_backward(const LayerParams& params, LayerActivations& act, const BatchCounts& counts);
  void parallel_layer_forward(const LayerParams& params, LayerActivations& act, Tensor x_next,
                              bool training);
  void parallel_layer_backward(const LayerParams& params, LayerActivations& act,
                               const BatchCounts& counts);
  void recompute_layer(const LayerParams& params, LayerActivations& act);
  void attention_output(const AttentionParams& params, AttentionActivations& act);
  void attention_forward(const AttentionParams& params, AttentionActivations& act, Tensor x_next,
                         Tensor x);
  void attention_backward(const AttentionParams& params, AttentionActivations& act, Tensor dx,
                          bool accumulate_dy);
  void ffn_forward(const FfnParams& params, FfnActivations& act, Tensor x_next);
  void ffn_backward(const FfnParams& params, FfnActivations& act, Tensor dx, bool accumulate_dy);
  void route(const MoeParams& params, MoeActivations& act, bool training);
  void dispatch_rows(MoeActivations& act);
  void compute_experts(const MoeParams& params, MoeActivations& act);
  void add_experts(const MoeActivations& act, Tensor x);
  void start_exchange(Tensor sent, Tensor received, const Routing& routing);
  // Calls work(first, last) for the local experts of each part of the exchange that was started,
  // when their rows are in `received`; brings those of `computed` to `returned`.
  template <typename Work>
  void compute_parts(Tensor sent, Tensor received, Tensor computed, Tensor returned,
                     const Routing& routing, Work&& work);
  void experts_forward(const MoeParams& params, MoeActivations& act, Tensor out, std::int64_t first,
                       std::int64_t last);
  void moe_backward(const MoeParams& params, MoeActivations& act, const BatchCounts& counts);
  // Own rows of scratch y = rms_norm(x); again in the backward. gather_normalized: then all rows.
  void normalize(const Param& norm, Tensor rstd, Tensor x);
  void gather_normalized(const Param& norm, Tensor rstd, Tensor x);
  // All rows of scratch dx as products read them.
  Tensor dx_operand();
  // x (by rows) += h w^T, summed over the tensor group.
  void project_accumulate(Tensor x, Tensor h, const Param& weight);
  // Scratch dx (by rows) and the norm's gradient, from own rows of scratch dy.
  void norm_backward(Param& norm, Tensor x, Tensor rstd);
  // Own rows of y as the router reads it, in f32.
  Tensor router_input();
  // This rank's columns of all rows of a tensor by rows, in `columns` or, alone, the tensor itself.
  Tensor columns_of(Tensor columns, Tensor own_rows);
  bool is_alone() const { return tensor_.size() == 1; }
  // The part of a per-token tensor that belongs to the rows of this rank.
  Tensor own(Tensor whole) const { return tensor_.own_rows(whole); }
  Tensor received(MoeActivations& act) { return is_local() ? scratch_.received : act.received; }
  void allocate_batch(Arena& arena);
  void allocate_layers(Arena& arena);
  void allocate_routing(Arena& arena, MoeActivations& moe);
  void allocate_attention(Arena& arena, AttentionActivations& attention);
  bool is_attention_scratch() const {
    return recompute_ == Recompute::attention && !config_.parallel_block;
  }
  void allocate_inside(Arena& arena, LayerActivations& layer, bool is_moe, bool has_ffn_norm);
  void allocate_scratch(Arena& arena, bool training);
  std::int64_t place_scratch(void* base, Device device, bool training);
  void experts_backward(const MoeParams& params, MoeActivations& act, std::int64_t first,
                        std::int64_t last);
  Tensor dlogits(std::int64_t num_rows);
  void head(float gradient_scale, StepSums& sums, Tensor token_loss);
  // Rows that `experts` of this rank's experts can receive at most.
  std::int64_t max_received(std::int64_t experts) const;
  std::int64_t place_experts(void* base, Device device, bool training);
  void allocate_tensor_buffers(Arena& arena);
  // Calls work(ExpertChunk) for local experts [first, last) in turns.
  template <typename Work>
  void for_expert_chunks(MoeActivations& act, std::int64_t first, std::int64_t last, Work&& work);
  void expert_inputs(const MoeParams& params, const ExpertChunk& chunk, Tensor rows);
  // All columns of the chunk's rows of `columns` (M_max, D/P).
  Tensor whole_rows(Tensor room, const ExpertChunk& chunk, Tensor columns);
  void ffn_inputs(const FfnParams& params, FfnActivations& act);
  void collect(const MoeActivations& act, MoeLayerSums& sums);
  RouterOptions router_options(bool training) const;
  bool is_local() const;
  void complete(Param& param) {
    if (gradient_observer_) gradient_observer_(param);
  }
  void complete(const Param& stack, const ExpertChunk& chunk);

  Ops& ops_;
  ModelConfig config_;
  RoutingConfig routing_;
  LossConfig loss_;
  ParamTable& params_;
  TokenExchange& exchange_;
  TensorGroup& tensor_;
  SharedVocabulary vocabulary_;  // of head and embedding
  DType compute_;
  Recompute recompute_;
  bool recompute_ffn_;  // gate and up of FFNs and experts
  std::int64_t rows_, length_, loss_chunk_rows_;
  TensorShare share_;
  std::int64_t expert_chunk_ = 0;            // local experts computed at once
  std::vector<std::int64_t> chunk_offsets_;  // (expert_chunk_ + 1)
  Param *embedding_, *final_norm_, *head_;
  std::vector<LayerParams> layers_;
  std::vector<LayerActivations> activations_;
  Tensor x_final_, final_rstd_;  // (N, D), (N)
  Scratch scratch_;
  BatchTensors batch_;
  // Host copies of what the router decided, for collect().
  std::vector<float> host_picks_, host_prob_, host_routed_, host_z_;
  std::vector<std::int32_t> host_slot_, host_wanted_;
  LogitsObserver logits_observer_;
  RouterOverride router_override_;
  GradientObserver gradient_observer_;
};

}  // namespace openmoe
