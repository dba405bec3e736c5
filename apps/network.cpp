#include "apps/network.h"

#include <utility>

#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/cpu/cpu_ops.h"
#include "core/moe/local_exchange.h"
#include "cuda/device_ops.h"
#include "parallel/expert_exchange.h"
#include "parallel/host_tensor_group.h"
#include "parallel/planned_group.h"

namespace openmoe {
namespace {

std::unique_ptr<TokenExchange> make_exchange(const ExchangeShape& shape, bool is_dense,
                                             Communicator& expert_group,
                                             const ExchangeRoute& route) {
  if (is_dense) return std::make_unique<LocalExchange>(shape);
  const std::int64_t local_experts = shape.num_experts / expert_group.size();
  if (route.num_parts > local_experts)
    throw UserError(concat("parallel.exchange_parts: found ", route.num_parts, ", allowed with ",
                           local_experts, " experts on a rank: 1 to ", local_experts));
  if (expert_group.size() == 1) return std::make_unique<LocalExchange>(shape);
  return std::make_unique<ExpertExchange>(shape, expert_group, route);
}

ParamShare share_of(const RehearsalGrid& grid, const Recipe& recipe, bool training) {
  return {grid.ep,
          grid.ep_rank(),
          grid.tp,
          grid.tp_rank(),
          grid.dp,
          grid.dp_rank(),
          training && recipe.parallel.shard_update};
}

// What runs on the CPU only so far.
void check_cuda(const Recipe& recipe, std::int64_t tp, const ExchangeRoute& route, bool training) {
  const auto check = [](bool is_allowed, const char* what, const auto& found, const char* allowed) {
    if (!is_allowed)
      throw UserError(concat(what, ": found ", found, ", allowed with --device cuda: ", allowed,
                             "; the rest runs on --device cpu so far"));
  };
  check(tp == 1, "--tp", tp, "1");
  check(route.kind == ExchangeKind::direct, "parallel.exchange", enum_name(route.kind), "direct");
  check(route.num_parts == 1, "parallel.exchange_parts", route.num_parts, "1");
  check(recipe.run.compute_type == ComputeType::f32, "run.compute_type", "bf16", "f32");
  if (!training) return;
  check(recipe.parallel.reduction_bucket_kb == 0, "parallel.reduction_bucket_kb",
        recipe.parallel.reduction_bucket_kb, "0");
  check(!recipe.parallel.shard_update, "parallel.shard_update", "true", "false");
  check(!recipe.run.checkpoint_in_background, "run.checkpoint_in_background", "true", "false");
}

AttentionCall attention_call(const Recipe& recipe, std::int64_t rows, std::int64_t tp,
                             bool training) {
  const ModelConfig& model = recipe.model;
  return {.shape = {rows, recipe.data.sequence_length, model.num_heads / tp, model.head_dim},
          .dtype = recipe.run.compute_type == ComputeType::bf16 ? DType::bf16 : DType::f32,
          .scale = model.logit_scale(),
          .backward = training};
}

NetworkParts make_parts(Ops& ops, ProcessGrid& grid, const Recipe& recipe, std::int64_t rows,
                        bool training) {
  const bool is_dense = recipe.model.num_moe_layers() == 0;
  const bool on_cuda = ops.device() == Device::cuda;
  const ExchangeShape shape = Model::exchange_shape(recipe, rows, grid.tp());
  NetworkParts parts;
  if (!is_dense) parts.route = choose_route(recipe.parallel, grid.expert());
  if (on_cuda) check_cuda(recipe, grid.tp(), parts.route, training);
  parts.exchange = on_cuda ? make_cuda_exchange(ops, shape, grid.device_expert())
                           : make_exchange(shape, is_dense, grid.expert(), parts.route);
  parts.tensor = make_host_tensor_group(ops, grid.tensor());
  parts.attention =
      ops.choose_attention(recipe.run.attention, attention_call(recipe, rows, grid.tp(), training));
  return parts;
}

// The one function that both sizes and allocates.
void allocate(Arena& arena, ParamTable& params, Model& model, CheckpointSnapshot& snapshot,
              const Recipe& recipe, bool training) {
  const GradientMemory gradients = !training                            ? GradientMemory::none
                                   : recipe.parallel.update_in_backward ? GradientMemory::one
                                                                        : GradientMemory::whole;
  params.allocate(arena, gradients, recipe.run.compute_type);
  model.allocate(arena, training);
  if (training && recipe.run.checkpoint_in_background) snapshot.allocate(arena, params);
}

}  // namespace

Network::Network(Ops& ops, ProcessGrid& grid, const Recipe& recipe, std::int64_t rows,
                 bool training)
    : Network(ops, {grid.dp(), grid.ep(), grid.tp(), grid.world_rank()}, recipe, rows, training,
              make_parts(ops, grid, recipe, rows, training)) {}

Network::Network(Ops& ops, const RehearsalGrid& grid, const Recipe& recipe, std::int64_t rows,
                 bool training, NetworkParts parts)
    : ops_(ops),
      params_(recipe.model, recipe.optimizer, share_of(grid, recipe, training)),
      route_(parts.route),
      attention_(std::move(parts.attention)),
      exchange_(std::move(parts.exchange)),
      tensor_(std::move(parts.tensor)),
      model_(ops, recipe, params_, *exchange_, *tensor_, rows) {
  Arena dry;
  allocate(dry, params_, model_, snapshot_, recipe, training);
  arena_ = std::make_unique<Arena>(ops, dry.used_bytes());
  allocate(*arena_, params_, model_, snapshot_, recipe, training);
}

void size_network(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows,
                  bool training) {
  const auto ops = make_cpu_ops();
  const auto expert_group = make_planned_group(static_cast<int>(grid.ep));
  const auto tensor_group = make_planned_group(static_cast<int>(grid.tp));
  ParamTable params(recipe.model, recipe.optimizer, share_of(grid, recipe, training));
  const auto exchange = make_exchange(
      Model::exchange_shape(recipe, rows, grid.tp), recipe.model.num_moe_layers() == 0,
      *expert_group, planned_route(recipe.parallel, grid.ep, grid.expert_ranks_per_host()));
  const auto tensor = make_host_tensor_group(*ops, *tensor_group);
  Model model(*ops, recipe, params, *exchange, *tensor, rows);
  CheckpointSnapshot snapshot;
  allocate(dry, params, model, snapshot, recipe, training);
}

}  // namespace openmoe
