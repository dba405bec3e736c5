#include "core/infer/decode_weights.h"

#include <algorithm>

#include "core/base/check.h"

namespace openmoe::infer {
namespace {

constexpr const char* kLayerPrefix = "model.layers.";

FfnWeights make_ffn(const ModelConfig& model, DType dtype) {
  FfnWeights ffn;
  ffn.gate = PackedMatrix(model.gate_dim(), model.d_model, dtype);
  ffn.up = PackedMatrix(model.ffn_dim, model.d_model, dtype);
  ffn.down = PackedMatrix(model.d_model, model.ffn_dim, dtype);
  return ffn;
}

std::int64_t bytes_of(const FfnWeights& ffn) {
  return ffn.gate.bytes() + ffn.up.bytes() + ffn.down.bytes();
}
std::int64_t bytes_of_attention(const LayerWeights& layer) {
  return layer.q.bytes() + layer.k.bytes() + layer.v.bytes() + layer.o.bytes();
}

// The layer's index, and `name` without the layer's prefix; -1 outside the layers.
std::int64_t layer_of(std::string& name) {
  const std::string prefix = kLayerPrefix;
  if (!name.starts_with(prefix)) return -1;
  const std::size_t dot = name.find('.', prefix.size());
  const std::int64_t index = std::stoll(name.substr(prefix.size(), dot - prefix.size()));
  name = name.substr(dot + 1);
  return index;
}

}  // namespace

DecodeWeights::DecodeWeights(const ModelConfig& model, DType dtype, std::int64_t ep,
                             std::int64_t ep_rank)
    : model_(model),
      dtype_(dtype),
      first_expert_(model.num_experts / ep * ep_rank),
      num_local_experts_(model.num_experts / ep) {
  const std::int64_t D = model.d_model, A = model.attention_dim();
  const auto norm = [&] { return std::vector<float>(static_cast<std::size_t>(D)); };
  embedding_ = PackedMatrix(model.vocab_size, D, dtype);
  if (!model.tied_embedding) head_ = PackedMatrix(model.vocab_size, D, dtype);
  final_norm_ = norm();
  layers_.resize(static_cast<std::size_t>(model.num_layers));
  for (std::int64_t i = 0; i < model.num_layers; ++i) {
    LayerWeights& layer = layers_[static_cast<std::size_t>(i)];
    layer.is_moe = model.is_moe_layer(i);
    layer.attention_norm = norm();
    layer.q = PackedMatrix(A, D, dtype);
    layer.k = PackedMatrix(A, D, dtype);
    layer.v = PackedMatrix(A, D, dtype);
    layer.o = PackedMatrix(D, A, dtype);
    layer.ffn = make_ffn(model, dtype);
    if (!layer.is_moe || model.residual_ffn == ResidualFfn::sequential) layer.ffn.norm = norm();
    if (!layer.is_moe) continue;
    layer.moe_norm = norm();
    layer.router = PackedMatrix(model.num_experts, D, DType::f32);
    for (std::int64_t e = 0; e < num_local_experts_; ++e)
      layer.experts.push_back(make_ffn(model, dtype));
  }
}

std::vector<float>* DecodeWeights::find_vector(const std::string& full_name) {
  std::string name = full_name;
  const std::int64_t index = layer_of(name);
  if (index < 0) return name == "model.norm.weight" ? &final_norm_ : nullptr;
  LayerWeights& layer = layers_.at(static_cast<std::size_t>(index));
  if (name == "input_layernorm.weight") return &layer.attention_norm;
  if (name == "post_attention_layernorm.weight")
    return layer.is_moe ? &layer.moe_norm : &layer.ffn.norm;
  if (name == "pre_extra_mlp_layernorm.weight") return &layer.ffn.norm;
  return nullptr;
}

PackedMatrix* DecodeWeights::find_matrix(const std::string& full_name) {
  std::string name = full_name;
  const std::int64_t index = layer_of(name);
  if (index < 0) {
    if (name == "model.embed_tokens.weight") return &embedding_;
    return name == "lm_head.weight" ? &head_ : nullptr;
  }
  LayerWeights& layer = layers_.at(static_cast<std::size_t>(index));
  if (name == "self_attn.q_proj.weight") return &layer.q;
  if (name == "self_attn.k_proj.weight") return &layer.k;
  if (name == "self_attn.v_proj.weight") return &layer.v;
  if (name == "self_attn.o_proj.weight") return &layer.o;
  if (name == "mlp.gate_weight") return &layer.router;
  const std::string ffn = layer.is_moe ? "extra_mlp." : "mlp.";
  if (name == ffn + "gate_proj.weight") return &layer.ffn.gate;
  if (name == ffn + "up_proj.weight") return &layer.ffn.up;
  if (name == ffn + "down_proj.weight") return &layer.ffn.down;
  return nullptr;
}

void DecodeWeights::set_expert(LayerWeights& layer, const std::string& name, std::int64_t expert,
                               const float* values) {
  if (expert < first_expert_ || expert >= first_expert_ + num_local_experts_) return;
  FfnWeights& weights = layer.experts[static_cast<std::size_t>(expert - first_expert_)];
  if (name == "mlp.experts.wi_gate")
    weights.gate.set_transposed(values);
  else if (name == "mlp.experts.wi_up")
    weights.up.set_transposed(values);
  else
    weights.down.set_transposed(values);
}

void DecodeWeights::set(const Param& param, std::int64_t begin, std::int64_t rows,
                        const float* values) {
  const Shape& shape = param.global_shape;
  if (shape.rank == 3) {
    std::string name = param.name;
    LayerWeights& layer = layers_.at(static_cast<std::size_t>(layer_of(name)));
    for (std::int64_t row = 0; row < rows; ++row)
      set_expert(layer, name, begin + row, values + row * shape[1] * shape[2]);
    return;
  }
  if (shape.rank == 1) {
    std::vector<float>* const vector = find_vector(param.name);
    OPENMOE_CHECK(vector != nullptr && begin + rows <= shape[0], "parameter ", param.name);
    std::copy_n(values, rows, vector->begin() + begin);
    return;
  }
  PackedMatrix* const matrix = find_matrix(param.name);
  OPENMOE_CHECK(matrix != nullptr && matrix->out() == shape[0] && matrix->in() == shape[1],
                "parameter ", param.name);
  matrix->set_rows(begin, rows, values);
}

void DecodeWeights::set_all(const ParamTable& table) {
  for (const Param& param : table.params())
    set(param, param.local_begin, param.local_shape[0], param.value.as<float>());
}

std::int64_t DecodeWeights::bytes() const {
  std::int64_t total = embedding_.bytes() + head_.bytes();
  for (const LayerWeights& layer : layers_) {
    total += bytes_of_attention(layer) + layer.router.bytes() + bytes_of(layer.ffn);
    for (const FfnWeights& expert : layer.experts) total += bytes_of(expert);
  }
  return total;
}

std::int64_t DecodeWeights::bytes_per_token() const {
  std::int64_t total = head().bytes() + model_.d_model * size_of(dtype_);
  for (const LayerWeights& layer : layers_) {
    total += bytes_of_attention(layer) + bytes_of(layer.ffn);
    if (layer.is_moe)
      total += layer.router.bytes() +
               std::min<std::int64_t>(2, num_local_experts_) * bytes_of(layer.experts.front());
  }
  return total;
}

}  // namespace openmoe::infer
