#include "core/param_table.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/rng.h"
#include "core/ops.h"

namespace openmoe {
namespace {

// Standard deviation of a standard normal truncated to [-2, 2].
constexpr double kTruncatedStd = 0.87962566103423978;
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
const Tensor kNoGradients{nullptr, DType::f32, Device::host, {0}};

struct TableBuilder {
  const ModelConfig& model;
  const OptimizerConfig& optimizer;
  const ParamShare& share;
  std::vector<Param>& params;

  Param& add(const std::string& name, const Shape& shape, InitKind init, double std) {
    Param param;
    param.name = name;
    param.global_shape = shape;
    param.local_shape = shape;
    param.init = init;
    param.init_std = std;
    param.factored = shape.rank == 3 || (shape.rank == 2 && std::min(shape[0], shape[1]) >=
                                                                optimizer.min_dim_to_factor);
    params.push_back(param);
    return params.back();
  }
  // The part of [0, size) that is this rank's of the tensor group.
  TensorSlice::Range part(std::int64_t size) const {
    return {size * share.tp_rank / share.tp, size * (share.tp_rank + 1) / share.tp};
  }
  // The last parameter is split along `axis`, in `halves` equal parts of which each is split.
  void split(int axis, std::int64_t halves = 1) {
    if (share.tp == 1) return;
    Param& param = params.back();
    TensorSlice& slice = param.tensor_slice;
    const std::int64_t half = param.global_shape[axis] / halves;
    const TensorSlice::Range own = part(half);
    slice.axis = axis;
    for (std::int64_t i = 0; i < halves; ++i)
      slice.ranges[static_cast<std::size_t>(slice.num_ranges++)] = {i * half + own.begin,
                                                                    i * half + own.end};
    param.local_shape.sizes[static_cast<std::size_t>(axis)] = halves * (own.end - own.begin);
    if (param.sharding == Sharding::replicated) param.sharding = Sharding::tensor;
  }
  std::int64_t gate_halves() const { return model.gate_dim() / model.ffn_dim; }
  void add_norm(const std::string& name) { add(name, {model.d_model}, InitKind::ones, 0.0); }
  void add_kernel(const std::string& name, std::int64_t out, std::int64_t in, InitKind init) {
    add(name, {out, in}, init, std::sqrt(model.init_scale / static_cast<double>(in))).in_products =
        true;
  }
  void add_experts(const std::string& name, std::int64_t in, std::int64_t out) {
    Param& param = add(name, {model.num_experts, in, out}, InitKind::normal,
                       std::sqrt(model.init_scale / static_cast<double>(in)));
    param.in_products = true;
    param.sharding = Sharding::expert;
    param.local_shape.sizes[0] = model.num_experts / share.ep;
    param.local_begin = share.ep_rank * param.local_shape[0];
  }

  void add_attention(const std::string& prefix) {
    const std::int64_t width = model.attention_dim();
    add_kernel(prefix + "q_proj.weight", width, model.d_model, InitKind::normal);
    // With folded scaling the 1/sqrt(Dh) of the attention logits lives in the initial value of the
    // query kernel.
    if (model.attention_scale == AttentionScale::folded)
      params.back().init_std /= std::sqrt(static_cast<double>(model.head_dim));
    split(0);  // by heads, which lie one after the other
    add_kernel(prefix + "k_proj.weight", width, model.d_model, InitKind::normal);
    split(0);
    add_kernel(prefix + "v_proj.weight", width, model.d_model, InitKind::normal);
    split(0);
    add_kernel(prefix + "o_proj.weight", model.d_model, width, InitKind::normal);
    split(1);
  }
  void add_ffn(const std::string& prefix) {
    add_kernel(prefix + "gate_proj.weight", model.gate_dim(), model.d_model,
               InitKind::truncated_normal);
    split(0, gate_halves());
    add_kernel(prefix + "up_proj.weight", model.ffn_dim, model.d_model, InitKind::truncated_normal);
    split(0);
    add_kernel(prefix + "down_proj.weight", model.d_model, model.ffn_dim,
               InitKind::truncated_normal);
    split(1);
  }
  void add_moe(const std::string& layer) {
    add(layer + "mlp.gate_weight", {model.num_experts, model.d_model}, InitKind::normal,
        model.router_init_std);
    add_experts(layer + "mlp.experts.wi_gate", model.d_model, model.gate_dim());
    split(2, gate_halves());
    add_experts(layer + "mlp.experts.wi_up", model.d_model, model.ffn_dim);
    split(2);
    add_experts(layer + "mlp.experts.wo", model.ffn_dim, model.d_model);
    split(1);
    if (!model.parallel_block && model.residual_ffn == ResidualFfn::sequential)
      add_norm(layer + "pre_extra_mlp_layernorm.weight");
  }
};

// A stack of experts is divided by experts, a matrix by rows, and what has no factored statistics
// by its first axis. A matrix that a tensor group shares by columns is whole on every rank, since
// the sums of its update are over one group at a time.
void divide(Param& param, const ParamShare& share) {
  const auto [size, rank] = share.holders(param.sharding);
  if (size == 1) return;
  const Shape matrices = param.as_matrices();
  const int last = param.local_shape.rank - 1;
  const bool is_stack = matrices[0] > 1;
  const bool by_columns = param.tensor_slice.axis == last && last > 0;
  if (param.factored && !is_stack && (matrices[1] < size || by_columns)) return;
  OwnPart& own = param.own;
  own.axis = param.factored && !is_stack ? last - 1 : 0;
  const std::int64_t units = param.local_shape[own.axis];
  own.begin = units * rank / size;
  own.end = units * (rank + 1) / size;
}

double init_value(const Param& param, const Rng& rng, std::uint64_t index) {
  switch (param.init) {
    case InitKind::ones:
      return 1.0;
    case InitKind::normal:
      return param.init_std * rng.normal_at(index);
    case InitKind::truncated_normal:
      return param.init_std / kTruncatedStd * rng.truncated_normal_at(index);
  }
  return 0.0;
}

}  // namespace

Shape Param::matrices_of(const Shape& shape) {
  if (shape.rank == 3) return shape;
  if (shape.rank == 2) return {1, shape[0], shape[1]};
  return {1, 1, shape[0]};
}

ParamShare::Holders ParamShare::holders(Sharding sharding) const {
  if (sharding == Sharding::expert) return {dp, dp_rank};
  const std::int64_t data_rank = dp_rank * ep + ep_rank;
  if (sharding == Sharding::replicated && tp > 1) return {dp * ep * tp, data_rank * tp + tp_rank};
  return {dp * ep, data_rank};
}

Tensor Param::own_of(const Tensor& whole) const {
  if (own.axis < 0) return whole;
  const std::int64_t units = whole.shape[own.axis];
  const std::int64_t unit_bytes =
      units == 0 ? 0 : whole.num_elements() / units * size_of(whole.dtype);
  Tensor part = whole;
  if (part.data != nullptr) part.data = static_cast<char*>(part.data) + own.begin * unit_bytes;
  part.shape.sizes[static_cast<std::size_t>(own.axis)] = own.end - own.begin;
  return part;
}

Placement Param::placement(Tensor Param::*member) const {
  Placement placement = whole_placement(member);
  const bool is_value = member == &Param::value;
  if (own.axis < 0 || (is_value && !is_value_divided)) return placement;
  int axis = own.axis;
  const bool by_experts = local_shape.rank == 3 && own.axis == 0;
  if (factored && !is_value && !by_experts) {
    // Rows of one matrix: (1, R) and, of sums over all of them, (1, C).
    if (member == &Param::stat_col) return placement;
    axis = 1;
  }
  placement.restrict_to(axis, own.begin, own.end);
  return placement;
}

Placement Param::whole_placement(Tensor Param::*member) const {
  // The axes of the parameter that the tensor has, in place of its own.
  std::vector<int> axes;
  const int last = local_shape.rank - 1;
  Placement placement{global_shape, local_shape, {}, false};
  int split_axis = tensor_slice.axis;
  if (factored && member != &Param::value) {  // (stack, R) or (stack, C)
    const int kept = member == &Param::stat_row ? last - 1 : last;
    const int kept_matrix_axis = member == &Param::stat_row ? 1 : 2;
    const Shape global = matrices_of(global_shape), local = matrices_of(local_shape);
    placement.global_shape = {global[0], global[kept_matrix_axis]};
    placement.local_shape = {local[0], local[kept_matrix_axis]};
    split_axis = split_axis == kept ? 1 : -1;
  }
  Piece piece;
  piece.size = piece.global_begin = piece.local_begin = placement.local_shape;
  for (int axis = 0; axis < piece.size.rank; ++axis)
    piece.global_begin.sizes[static_cast<std::size_t>(axis)] =
        piece.local_begin.sizes[static_cast<std::size_t>(axis)] = 0;
  piece.global_begin.sizes[0] = local_begin;
  if (split_axis < 0) {
    placement.pieces = {piece};
    return placement;
  }
  placement.is_shared_by_tensor_group = true;
  const auto at = static_cast<std::size_t>(split_axis);
  std::int64_t next = 0;
  for (int i = 0; i < tensor_slice.num_ranges; ++i) {
    const TensorSlice::Range& range = tensor_slice.ranges[static_cast<std::size_t>(i)];
    piece.global_begin.sizes[at] = range.begin;
    piece.local_begin.sizes[at] = next;
    piece.size.sizes[at] = range.end - range.begin;
    next += piece.size.sizes[at];
    placement.pieces.push_back(piece);
  }
  return placement;
}

Param Param::slice(std::int64_t begin, std::int64_t end) const {
  OPENMOE_CHECK(sharding == Sharding::expert, name, " is not a stack of experts");
  Param part = *this;
  part.local_begin += begin;
  part.local_shape.sizes[0] = end - begin;
  for (Tensor Param::*tensor :
       {&Param::value, &Param::operand, &Param::grad, &Param::stat_row, &Param::stat_col})
    part.*tensor = (this->*tensor).rows(begin, end);
  return part;
}

ParamTable::ParamTable(const ModelConfig& model, const OptimizerConfig& optimizer,
                       const ParamShare& share)
    : share_(share) {
  const std::int64_t ep = share.ep, tp = share.tp;
  OPENMOE_CHECK(ep >= 1 && share.ep_rank >= 0 && share.ep_rank < ep, "ep rank ", share.ep_rank,
                " of ", ep);
  OPENMOE_CHECK(tp >= 1 && share.tp_rank >= 0 && share.tp_rank < tp, "tp rank ", share.tp_rank,
                " of ", tp);
  OPENMOE_CHECK(model.num_moe_layers() == 0 || model.num_experts % ep == 0, model.num_experts,
                " experts over ", ep, " ranks");
  OPENMOE_CHECK(model.num_heads % tp == 0 && model.ffn_dim % tp == 0, model.num_heads,
                " heads and ffn_dim ", model.ffn_dim, " over ", tp, " ranks");
  TableBuilder build{model, optimizer, share, params_};
  build
      .add(kEmbedding, {model.vocab_size, model.d_model}, InitKind::normal,
           model.embedding_init_std)
      .in_products = model.tied_embedding;
  build.split(0);
  for (std::int64_t i = 0; i < model.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    build.add_norm(layer + "input_layernorm.weight");
    build.add_attention(layer + "self_attn.");
    if (!model.parallel_block) build.add_norm(layer + "post_attention_layernorm.weight");
    if (model.is_moe_layer(i)) build.add_moe(layer);
    build.add_ffn(layer + (model.is_moe_layer(i) ? "extra_mlp." : "mlp."));
  }
  build.add_norm("model.norm.weight");
  if (!model.tied_embedding) {
    build.add_kernel(kHead, model.vocab_size, model.d_model, InitKind::truncated_normal);
    build.split(0);
  }
  if (share.divides_update)
    for (Param& param : params_) divide(param, share);
}

void ParamTable::allocate(Arena& arena, GradientMemory gradients, ComputeType compute) {
  for (Param& param : params_) {
    const bool is_rounded = compute == ComputeType::bf16 && param.in_products;
    // A tied embedding is looked up in f32.
    param.is_value_divided = gradients != GradientMemory::none && is_rounded &&
                             param.own.axis >= 0 && param.name != kEmbedding;
    param.value = arena.allocate(param.name, MemoryCategory::parameters, DType::f32,
                                 param.placement(&Param::value).local_shape);
    param.operand = is_rounded ? arena.allocate(param.name + ".rounded", MemoryCategory::parameters,
                                                DType::bf16, param.local_shape)
                               : param.value;
  }
  if (gradients == GradientMemory::none) return;
  const std::int64_t begin_bytes = arena.used_bytes();
  if (gradients == GradientMemory::whole)
    allocate_whole_gradients(arena);
  else
    allocate_one_gradient(arena);
  all_grads_ = params_.front().grad;  // the embedding's is in the first place of either
  all_grads_.shape = Shape{(arena.used_bytes() - begin_bytes) / size_of(DType::f32)};
  for (Param& param : params_) {
    const auto state = [&](const char* suffix, Tensor Param::*member) {
      return arena.allocate(param.name + suffix, MemoryCategory::optimizer, DType::f32,
                            param.placement(member).local_shape);
    };
    param.stat_row = state(param.factored ? ".row" : ".second_moment", &Param::stat_row);
    if (param.factored) param.stat_col = state(".col", &Param::stat_col);
  }
}

void ParamTable::allocate_whole_gradients(Arena& arena) {
  for (const Sharding sharding : kShardings) {
    const std::int64_t begin_bytes = arena.used_bytes();
    Tensor all = kNoGradients;
    for (Param& param : params_) {
      if (param.sharding != sharding) continue;
      param.grad = arena.allocate(param.name + ".grad", MemoryCategory::gradients, DType::f32,
                                  param.local_shape);
      if (all.data == nullptr) all = param.grad;
    }
    all.shape = Shape{(arena.used_bytes() - begin_bytes) / size_of(DType::f32)};
    grads_[static_cast<std::size_t>(sharding)] = all;
  }
}

void ParamTable::allocate_one_gradient(Arena& arena) {
  grads_.fill(kNoGradients);
  const auto has_own = [&](const Param& param) {
    return param.name == kEmbedding && !contains(kHead);
  };
  std::int64_t largest = 0;
  for (Param& param : params_)
    if (has_own(param))
      param.grad = arena.allocate(param.name + ".grad", MemoryCategory::gradients, DType::f32,
                                  param.local_shape);
    else
      largest = std::max(largest, param.local_shape.num_elements());
  const Tensor shared =
      arena.allocate("gradient", MemoryCategory::gradients, DType::f32, {largest});
  for (Param& param : params_)
    if (!has_own(param)) {
      param.grad = shared;
      param.grad.shape = param.local_shape;
    }
}

void ParamTable::initialize(Ops& ops, std::uint64_t seed) {
  std::vector<float> memory;  // of values that another device holds, or that are divided
  for (Param& param : params_) {
    const Rng rng(seed, stream_id(param.name));
    const bool in_place = param.value.device == Device::host && !param.is_value_divided;
    if (!in_place) memory.resize(static_cast<std::size_t>(param.local_shape.num_elements()));
    float* const host = in_place ? param.value.as<float>() : memory.data();
    const Placement placement = param.whole_placement(&Param::value);
    for (const Piece& piece : placement.pieces) {
      const Runs runs(piece, placement.global_shape, placement.local_shape);
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < runs.count(); ++i) {
        const auto [global, local] = runs.at(i);
        for (std::int64_t j = 0; j < runs.length(); ++j)
          host[local + j] =
              static_cast<float>(init_value(param, rng, static_cast<std::uint64_t>(global + j)));
      }
    }
    if (in_place) continue;
    const Tensor whole = host_view(host, param.local_shape);
    ops.copy(param.value, param.is_value_divided ? param.own_of(whole) : whole);
    if (!param.is_value_divided) continue;
    std::vector<BFloat16> rounded(memory.begin(), memory.end());
    ops.copy(param.operand, host_view(rounded.data(), param.local_shape));
  }
  round_operands(ops);
}

void ParamTable::round_operands(Ops& ops) {
  for (Param& param : params_) param.round_operand(ops);
}

Param& ParamTable::find(const std::string& name) {
  const auto found =
      std::find_if(params_.begin(), params_.end(), [&](const Param& p) { return p.name == name; });
  OPENMOE_CHECK(found != params_.end(), "no parameter ", name);
  return *found;
}

bool ParamTable::contains(const std::string& name) const {
  return std::any_of(params_.begin(), params_.end(),
                     [&](const Param& p) { return p.name == name; });
}

std::int64_t ParamTable::num_parameters() const {
  std::int64_t total = 0;
  for (const Param& param : params_) total += param.global_shape.num_elements();
  return total;
}

ParameterCounts count_parameters(const ModelConfig& model) {
  ParameterCounts counts;
  std::int64_t embedding = 0;
  const ParamTable table(model, OptimizerConfig{});
  for (const Param& param : table.params()) {
    const std::int64_t size = param.global_shape.num_elements();
    counts.total += size;
    if (param.name == kEmbedding || param.name == kHead)
      embedding += size;
    else if (param.sharding == Sharding::expert)
      counts.active += size / model.num_experts * std::min<std::int64_t>(2, model.num_experts);
    else
      counts.active += size;
  }
  counts.active_with_embedding = counts.active + embedding;
  return counts;
}

double flops_per_token(const Recipe& recipe) {
  const ModelConfig& model = recipe.model;
  const auto real = [](std::int64_t count) { return static_cast<double>(count); };
  const double width = real(model.attention_dim());
  const double ffn = 2.0 * real(model.d_model) * real(model.gate_dim() + 2 * model.ffn_dim);
  const double attention =
      8.0 * real(model.d_model) * width + 2.0 * width * (real(recipe.data.sequence_length) + 1.0);
  double forward = real(model.num_layers) * (attention + ffn) +
                   2.0 * real(model.d_model) * real(model.vocab_size);
  if (model.num_moe_layers() > 0) {
    const double slots = real(recipe.routing.capacity(model.num_experts, true)) *
                         real(model.num_experts) / real(recipe.routing.group_tokens);
    forward += real(model.num_moe_layers()) *
               (std::min(2.0, slots) * ffn + 2.0 * real(model.d_model * model.num_experts));
  }
  return 3.0 * forward;
}

}  // namespace openmoe
