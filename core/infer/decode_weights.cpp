#include "core/infer/decode_weights.h"

#include <algorithm>

#include "core/base/check.h"

namespace openmoe::infer {
namespace {

constexpr const char* kLayerPrefix = "model.layers.";
constexpr const char* kExpertGate = "mlp.experts.wi_gate";
constexpr const char* kExpertDown = "mlp.experts.wo";

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

FfnWeights DecodeWeights::make_ffn() const {
  const std::int64_t f = splits_.ffn.size(), halves = model_.gate_dim() / model_.ffn_dim;
  FfnWeights ffn;
  ffn.gate = PackedMatrix(halves * f, model_.d_model, dtype_);
  ffn.up = PackedMatrix(f, model_.d_model, dtype_);
  ffn.down = PackedMatrix(splits_.d_model.size(), model_.ffn_dim, dtype_);
  return ffn;
}

DecodeWeights::DecodeWeights(const ModelConfig& model, DType dtype, std::int64_t ep,
                             std::int64_t ep_rank, std::int64_t tp, std::int64_t tp_rank)
    : model_(model),
      dtype_(dtype),
      splits_(model, tp, tp_rank),
      first_expert_(model.num_experts / ep * ep_rank),
      num_local_experts_(model.num_experts / ep) {
  OPENMOE_CHECK(tp <= TensorSplits::most_ranks(model), "tp ", tp, " of at most ",
                TensorSplits::most_ranks(model));
  const std::int64_t D = model.d_model, A = model.attention_dim();
  const std::int64_t heads_out = splits_.attention.size();
  const auto norm = [&] { return std::vector<float>(static_cast<std::size_t>(D)); };
  embedding_ = PackedMatrix(splits_.vocab.size(), D, dtype);
  if (!model.tied_embedding) head_ = PackedMatrix(splits_.vocab.size(), D, dtype);
  final_norm_ = norm();
  layers_.resize(static_cast<std::size_t>(model.num_layers));
  for (std::int64_t i = 0; i < model.num_layers; ++i) {
    LayerWeights& layer = layers_[static_cast<std::size_t>(i)];
    layer.is_moe = model.is_moe_layer(i);
    layer.attention_norm = norm();
    for (PackedMatrix* const matrix : {&layer.q, &layer.k, &layer.v})
      *matrix = PackedMatrix(heads_out, D, dtype);
    layer.o = PackedMatrix(splits_.d_model.size(), A, dtype);
    layer.ffn = make_ffn();
    const bool has_norms = !model.parallel_block;  // beside the first
    if (has_norms && (!layer.is_moe || model.residual_ffn == ResidualFfn::sequential))
      layer.ffn.norm = norm();
    if (!layer.is_moe) continue;
    if (has_norms) layer.moe_norm = norm();
    layer.router = PackedMatrix(model.num_experts, D, DType::f32);
    for (std::int64_t e = 0; e < num_local_experts_; ++e) layer.experts.push_back(make_ffn());
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

std::vector<DecodeWeights::RowPiece> DecodeWeights::row_pieces(const Param& param) const {
  const auto of = [](const Split& split) {
    return RowPiece{split.begin(), split.begin() + split.size(), 0};
  };
  std::string name = param.name;
  if (layer_of(name) < 0) return {of(splits_.vocab)};
  if (name == "mlp.gate_weight") return {{0, model_.num_experts, 0}};
  if (name == "self_attn.o_proj.weight") return {of(splits_.d_model)};
  if (name.starts_with("self_attn.")) return {of(splits_.attention)};
  if (name.ends_with("down_proj.weight") || name == kExpertDown) return {of(splits_.d_model)};
  const RowPiece own = of(splits_.ffn);
  const bool is_gate = name.ends_with("gate_proj.weight") || name == kExpertGate;
  if (!is_gate || model_.gate_dim() == model_.ffn_dim) return {own};
  return {own, {model_.ffn_dim + own.begin, model_.ffn_dim + own.end, splits_.ffn.size()}};
}

std::vector<ParamBlock> DecodeWeights::blocks(const Param& param) const {
  const Shape& shape = param.global_shape;
  if (shape.rank == 1) return {ParamBlock::rows(param, 0, shape[0])};
  std::vector<ParamBlock> blocks;
  for (const RowPiece& piece : row_pieces(param)) {
    if (shape.rank == 3)
      blocks.push_back({first_expert_, first_expert_ + num_local_experts_, piece.begin, piece.end});
    else
      blocks.push_back(ParamBlock::rows(param, piece.begin, piece.end));
  }
  return blocks;
}

// Stacks are (E, in, out): a row of the packed matrix is a column of an expert's.
void DecodeWeights::set_experts(const Param& param, const ParamBlock& block, const float* values) {
  std::string name = param.name;
  LayerWeights& layer = layers_.at(static_cast<std::size_t>(layer_of(name)));
  PackedMatrix FfnWeights::*const member = name == kExpertGate   ? &FfnWeights::gate
                                           : name == kExpertDown ? &FfnWeights::down
                                                                 : &FfnWeights::up;
  const std::int64_t end = std::min(block.end, first_expert_ + num_local_experts_);
  for (std::int64_t expert = std::max(block.begin, first_expert_); expert < end; ++expert) {
    PackedMatrix& matrix = layer.experts[static_cast<std::size_t>(expert - first_expert_)].*member;
    const float* const source =
        values + (expert - block.begin) * param.global_shape[1] * block.width();
    for (const RowPiece& piece : row_pieces(param)) {
      const std::int64_t first = std::max(piece.begin, block.first_column);
      const std::int64_t last = std::min(piece.end, block.last_column);
      if (first < last)
        matrix.set_transposed(piece.local + first - piece.begin, last - first,
                              source + first - block.first_column, block.width());
    }
  }
}

void DecodeWeights::set(const Param& param, const ParamBlock& block, const float* values) {
  const Shape& shape = param.global_shape;
  OPENMOE_CHECK(0 <= block.begin && block.end <= shape[0] && 0 <= block.first_column &&
                    block.last_column <= shape[shape.rank - 1] &&
                    (shape.rank == 3 || block.width() == shape[shape.rank - 1]),
                "rows [", block.begin, ", ", block.end, "), columns [", block.first_column, ", ",
                block.last_column, ") of ", param.name, " ", shape.to_string());
  if (shape.rank == 3) return set_experts(param, block, values);
  if (shape.rank == 1) {
    std::vector<float>* const vector = find_vector(param.name);
    OPENMOE_CHECK(vector != nullptr, "parameter ", param.name);
    std::copy_n(values, block.end - block.begin, vector->begin() + block.begin);
    return;
  }
  PackedMatrix* const matrix = find_matrix(param.name);
  OPENMOE_CHECK(matrix != nullptr && matrix->in() == shape[1], "parameter ", param.name);
  for (const RowPiece& piece : row_pieces(param)) {
    const std::int64_t first = std::max(piece.begin, block.begin);
    const std::int64_t last = std::min(piece.end, block.end);
    if (first < last)
      matrix->set_rows(piece.local + first - piece.begin, last - first,
                       values + (first - block.begin) * shape[1]);
  }
}

void DecodeWeights::set_all(const ParamTable& table) {
  for (const Param& param : table.params())
    set(param, ParamBlock::rows(param, param.local_begin, param.local_begin + param.local_shape[0]),
        param.value.as<float>());
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
