// The memory of the network: what each sublayer saves, and scratch that sublayers share. The
// function that sizes is the function that allocates (see arena.h).
#include <algorithm>

#include "core/model/model.h"

namespace openmoe {
namespace {

// Lays tensors out one after the other from an address that may still be unknown (null).
class Placer {
 public:
  Placer(void* base, Device device) : base_(static_cast<char*>(base)), device_(device) {}

  Tensor place(DType dtype, const Shape& shape) {
    Tensor tensor{base_ == nullptr ? nullptr : base_ + used_bytes_, dtype, device_, shape};
    used_bytes_ += (tensor.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return tensor;
  }
  std::int64_t used_bytes() const { return used_bytes_; }

 private:
  static constexpr std::int64_t kAlignment = 64;
  char* base_;
  Device device_;
  std::int64_t used_bytes_ = 0;
};

}  // namespace

void Model::allocate(Arena& arena, bool training) {
  allocate_batch(arena);
  allocate_layers(arena);
  const auto make = [&](const char* name, const Shape& shape) {
    return arena.allocate(name, MemoryCategory::activations, DType::f32, shape);
  };
  x_final_ = make("x_final", {share_.num_tokens, config_.d_model});
  final_rstd_ = make("final.rstd", {share_.num_tokens});
  if (config_.num_moe_layers() > 0) exchange_.allocate_buffers(arena);
  allocate_scratch(arena, training);
  allocate_tensor_buffers(arena);
}

void Model::allocate_tensor_buffers(Arena& arena) {
  const std::int64_t row_bytes = config_.d_model * size_of(DType::f32);
  const bool has_moe = config_.num_moe_layers() > 0;
  const std::int64_t chunk_rows = has_moe ? max_received(expert_chunk_) : 0;
  // Largest of their kind: the residual stream by rows and a chunk's sums; all rows, the same sums,
  // and the gradients of the gates from every rank.
  const std::int64_t gate_bytes = tensor_.size() * num_tokens() * 2 * size_of(DType::f32);
  tensor_.allocate_buffers(arena, std::max(share_.num_tokens, chunk_rows) * row_bytes,
                           std::max(std::max(num_tokens(), chunk_rows) * row_bytes, gate_bytes));
}

void Model::allocate_batch(Arena& arena) {
  const auto make = [&](const char* name, DType dtype) {
    return arena.allocate(name, MemoryCategory::batch, dtype, {num_tokens()});
  };
  batch_ = {make("inputs", DType::i32), make("targets", DType::i32),
            make("loss_weights", DType::f32), make("segment_ids", DType::i32),
            make("routed", DType::i32)};
}

void Model::allocate_layers(Arena& arena) {
  const std::int64_t D = config_.d_model;
  const bool is_shared = recompute_ == Recompute::block;
  LayerActivations shared;  // what one layer at a time has
  if (recompute_ == Recompute::attention && !is_attention_scratch())
    allocate_attention(arena, shared.attention);
  if (is_shared)
    allocate_inside(
        arena, shared, config_.num_moe_layers() > 0,
        std::any_of(layers_.begin(), layers_.end(), [](const auto& l) { return l.ffn.norm; }));
  activations_.assign(layers_.size(), shared);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    LayerActivations& layer = activations_[i];
    layer.x_attention = arena.allocate("x_attention", MemoryCategory::activations, DType::f32,
                                       {share_.num_tokens, D});
    if (layers_[i].is_moe) allocate_routing(arena, layer.moe);
    if (!is_shared)
      allocate_inside(arena, layer, layers_[i].is_moe, layers_[i].ffn.norm != nullptr);
  }
}

// What is kept from forward to backward whatever is computed again: small, and the same bits for
// sure.
void Model::allocate_routing(Arena& arena, MoeActivations& moe) {
  const std::int64_t N = num_tokens(), E = config_.num_experts, groups = N / routing_.group_tokens;
  const auto make = [&](const char* name, const Shape& shape, DType dtype = DType::f32) {
    return arena.allocate(name, MemoryCategory::activations, dtype, shape);
  };
  moe.router = {make("router.prob", {N, E}),
                make("router.log_z", {N}),
                make("router.choice", {N, 2}, DType::i32),
                make("router.gate", {N, 2}),
                make("router.slot", {N, 2}, DType::i32),
                make("router.group_picks", {groups, E}),
                make("router.group_prob", {groups, E}),
                make("router.group_routed", {groups}),
                make("router.group_z", {groups})};
  exchange_.allocate_routing(arena, moe.routing);
}

void Model::allocate_attention(Arena& arena, AttentionActivations& attention) {
  const std::int64_t N = num_tokens(), A = share_.attention_dim;
  const auto make = [&](const char* name, const Shape& shape, DType dtype) {
    return arena.allocate(name, MemoryCategory::activations, dtype, shape);
  };
  attention.q = make("attention.q", {N, A}, compute_);
  attention.k = make("attention.k", {N, A}, compute_);
  attention.v = make("attention.v", {N, A}, compute_);
  attention.o = make("attention.o", {N, A}, compute_);
  attention.log_z = make("attention.log_z", {rows_, share_.num_heads, length_}, DType::f32);
}

// What a layer computes from its input. Tensors that are computed again within a sublayer are
// scratch.
void Model::allocate_inside(Arena& arena, LayerActivations& layer, bool is_moe, bool has_ffn_norm) {
  const std::int64_t N = num_tokens(), D = config_.d_model, F = share_.ffn_dim,
                     Fg = share_.gate_dim, own_N = share_.num_tokens;
  const auto make = [&](const char* name, const Shape& shape, DType dtype = DType::f32) {
    return arena.allocate(name, MemoryCategory::activations, dtype, shape);
  };
  layer.attention.rstd = make("attention.rstd", {own_N});
  if (recompute_ != Recompute::attention) allocate_attention(arena, layer.attention);
  if (is_moe) {
    const std::int64_t sent_rows = exchange_.max_sent(), received_rows = exchange_.max_received();
    MoeActivations& moe = layer.moe;
    if (!config_.parallel_block) {
      layer.x_moe = make("x_moe", {own_N, D});
      moe.rstd = make("moe.rstd", {own_N});
    }
    if (!is_local())
      moe.received = make("moe.received", {received_rows, share_.d_columns}, compute_);
    if (!recompute_ffn_) {
      moe.expert_gate = make("moe.expert_gate", {received_rows, Fg}, compute_);
      moe.expert_up = make("moe.expert_up", {received_rows, F}, compute_);
    }
    moe.returned = make("moe.returned", {sent_rows, share_.d_columns}, compute_);
  }
  if (has_ffn_norm) {
    layer.x_ffn = make("x_ffn", {own_N, D});
    layer.ffn.rstd = make("ffn.rstd", {own_N});
  }
  if (recompute_ffn_) return;
  layer.ffn.gate = make("ffn.gate", {N, Fg}, compute_);
  layer.ffn.up = make("ffn.up", {N, F}, compute_);
}

void Model::allocate_scratch(Arena& arena, bool training) {
  const std::int64_t N = num_tokens(), D = config_.d_model;
  const auto make = [&](const char* name, DType dtype, const Shape& shape) {
    return arena.allocate(name, MemoryCategory::activations, dtype, shape);
  };
  scratch_ = {};
  scratch_.y = make("y", compute_, {N, D});
  if (training || !is_alone()) scratch_.dy = make("dy", DType::f32, {N, D});
  if (training) {
    scratch_.dx_operand = make("dx_operand", compute_, {N, D});
    scratch_.dx = compute_ == DType::f32 ? own(scratch_.dx_operand)
                                         : make("dx", DType::f32, {share_.num_tokens, D});
  }
  const std::int64_t bytes = place_scratch(nullptr, Device::host, training);
  const Tensor shared = make("scratch", DType::u8, {bytes});
  place_scratch(shared.data, shared.device, training);
}

// Each group begins at `base`; returns the bytes of the largest.
std::int64_t Model::place_scratch(void* base, Device device, bool training) {
  const ModelConfig& c = config_;
  const std::int64_t N = num_tokens(), A = share_.attention_dim;
  Scratch& s = scratch_;

  Placer ffn(base, device);
  s.h = ffn.place(compute_, {N, share_.ffn_dim});
  if (recompute_ffn_) {
    const Tensor gate = ffn.place(compute_, {N, share_.gate_dim});
    const Tensor up = ffn.place(compute_, {N, share_.ffn_dim});
    for (LayerActivations& layer : activations_) {
      layer.ffn.gate = gate;
      layer.ffn.up = up;
    }
  }

  Placer head(base, device);
  const bool rounds = training && compute_ != DType::f32;
  // The same room on all ranks of a tensor group, whose parts of the vocabulary may differ by one:
  // they must come to the same chunks of experts.
  const std::int64_t most_columns = (c.vocab_size + tensor_.size() - 1) / tensor_.size();
  if (rounds) s.logits_operand = head.place(compute_, {1, most_columns});  // see Model::dlogits
  s.logits = head.place(DType::f32, {loss_chunk_rows_, most_columns});
  if (!rounds) s.logits_operand = s.logits;
  s.logits.shape = s.logits_operand.shape = {loss_chunk_rows_, share_.vocab_size};
  if (!training) s.token_loss = head.place(DType::f32, {loss_chunk_rows_});

  Placer attention(base, device);
  if (training)
    for (Tensor* gradient : {&s.dq, &s.dk, &s.dv, &s.d_o})
      *gradient = attention.place(compute_, {N, A});
  if (is_attention_scratch()) {
    AttentionActivations again;
    for (Tensor* tensor : {&again.q, &again.k, &again.v, &again.o})
      *tensor = attention.place(compute_, {N, A});
    again.log_z = attention.place(DType::f32, {rows_, share_.num_heads, length_});
    for (LayerActivations& layer : activations_) {
      again.rstd = layer.attention.rstd;
      layer.attention = again;
    }
  }

  const std::int64_t others =
      std::max({ffn.used_bytes(), head.used_bytes(), attention.used_bytes()});
  if (c.num_moe_layers() == 0) return others;
  if (base == nullptr) {  // sizing: as many experts at once as fit beside the other groups
    const std::int64_t parts = exchange_.num_parts();
    expert_chunk_ = (exchange_.num_local_experts() + parts - 1) / parts;
    while (expert_chunk_ > 1 && place_experts(base, device, training) > others) --expert_chunk_;
    chunk_offsets_.resize(static_cast<std::size_t>(expert_chunk_ + 1));
  }
  return std::max(others, place_experts(base, device, training));
}

std::int64_t Model::place_experts(void* base, Device device, bool training) {
  const ModelConfig& c = config_;
  const std::int64_t N = num_tokens(), sent_rows = exchange_.max_sent(),
                     received_rows = exchange_.max_received(),
                     chunk_rows = max_received(expert_chunk_);
  Scratch& s = scratch_;
  Placer moe(base, device);
  if (compute_ != DType::f32) s.router_y = moe.place(DType::f32, {share_.num_tokens, c.d_model});
  s.router_logits = moe.place(DType::f32, {N, c.num_experts});
  s.dgate = moe.place(DType::f32, {N, 2});
  if (is_local())
    s.received = moe.place(compute_, {received_rows, share_.d_columns});
  else
    s.sent = moe.place(compute_, {sent_rows, share_.d_columns});
  if (training || !is_local()) s.exchanged = moe.place(compute_, {received_rows, share_.d_columns});
  s.expert_h = moe.place(compute_, {chunk_rows, share_.ffn_dim});
  if (!is_alone()) {
    s.y_columns = moe.place(compute_, {N, share_.d_columns});
    s.sum_columns = moe.place(DType::f32, {N, share_.d_columns});
    s.expert_x = moe.place(compute_, {chunk_rows, c.d_model});
    if (training) s.expert_d = moe.place(compute_, {chunk_rows, c.d_model});
    s.expert_sum = moe.place(DType::f32, {chunk_rows, c.d_model});
  }
  if (recompute_ffn_) {
    const Tensor gate = moe.place(compute_, {chunk_rows, share_.gate_dim});
    const Tensor up = moe.place(compute_, {chunk_rows, share_.ffn_dim});
    for (LayerActivations& layer : activations_) {
      layer.moe.expert_gate = gate;
      layer.moe.expert_up = up;
    }
  }
  return moe.used_bytes();
}

// Every rank of the expert group can fill all slots of an expert.
std::int64_t Model::max_received(std::int64_t experts) const {
  const std::int64_t ranks = config_.num_experts / exchange_.num_local_experts();
  const std::int64_t groups = ranks * num_tokens() / routing_.group_tokens;
  const std::int64_t capacity = std::max(routing_.capacity(config_.num_experts, true),
                                         routing_.capacity(config_.num_experts, false));
  return std::min(exchange_.max_received(), experts * groups * capacity);
}

}  // namespace openmoe
