#include "apps/network.h"

#include <utility>

#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/cpu/cpu_ops.h"
#include "core/moe/local_exchange.h"
#include "cuda/device_ops.h"
#include "parallel/expert_exchange.h"
#include "parallel/planned_group.h"
#include "parallel/rank_tensor_group.h"

namespace openmoe {
namespace {

// `planner` is for the ranks of `expert_group`, which is for tensors of `ops`.
std::unique_ptr<TokenExchange> make_exchange(Ops& ops, std::unique_ptr<RoutingPlanner> planner,
                                             bool is_dense, Communicator& expert_group,
                                             const ExchangeRoute& route) {
  if (is_dense) return std::make_unique<LocalExchange>(std::move(planner));
  const std::int64_t local_experts = planner->num_local_experts();
  if (route.num_parts > local_experts)
    throw UserError(concat("parallel.exchange_parts: found ", route.num_parts, ", allowed with ",
                           local_experts, " experts on a rank: 1 to ", local_experts));
  if (expert_group.size() == 1) return std::make_unique<LocalExchange>(std::move(planner));
  return std::make_unique<ExpertExchange>(ops, std::move(planner), expert_group, route);
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
  const ExchangeShape shape = Model::exchange_shape(recipe, rows, grid.tp());
  const std::int64_t ep = is_dense ? 1 : grid.ep();
  NetworkParts parts;
  if (!is_dense) parts.route = choose_route(recipe.parallel, grid.expert());
  auto planner = ops.device() == Device::cuda ? make_cuda_planner(ops, shape, ep)
                                              : std::make_unique<RoutingPlanner>(shape, ep);
  parts.exchange = make_exchange(ops, std::move(planner), is_dense, grid.for_tensors(grid.expert()),
                                 parts.route);
  parts.tensor = make_tensor_group(ops, grid.for_tensors(grid.tensor()), grid.tensor());
  parts.attention =
      ops.choose_attention(recipe.run.attention, attention_call(recipe, rows, grid.tp(), training));
  return parts;
}

WorkSizes work_sizes(const Recipe& recipe, const ParamTable& params, const Model& model,
                     std::int64_t tp, bool training) {
  WorkSizes sizes{.num_tokens = model.rows() * recipe.data.sequence_length,
                  .d_model = recipe.model.d_model,
                  .loss_rows = model.loss_chunk_rows(),
                  .attention = attention_call(recipe, model.rows(), tp, training),
                  .updates = {}};
  for (const Param& param : params.params()) {
    const Shape& shape = param.local_shape;
    const std::int64_t columns = shape[shape.rank - 1];
    sizes.updates.push_back({param.stack(),
                             columns == 0 ? 0 : shape.num_elements() / param.stack() / columns,
                             columns, param.factored});
  }
  return sizes;
}

// The one function that both sizes and allocates.
void allocate(Arena& arena, Ops& ops, ParamTable& params, Model& model,
              CheckpointSnapshot& snapshot, const Recipe& recipe, std::int64_t tp, bool training) {
  const GradientMemory gradients = !training                            ? GradientMemory::none
                                   : recipe.parallel.update_in_backward ? GradientMemory::one
                                                                        : GradientMemory::whole;
  params.allocate(arena, gradients, recipe.run.compute_type);
  model.allocate(arena, training);
  if (training && recipe.run.checkpoint_in_background) snapshot.allocate(arena, ops, params);
  const std::int64_t work = ops.workspace_bytes(work_sizes(recipe, params, model, tp, training));
  const Tensor workspace =
      arena.allocate("workspace", MemoryCategory::workspace, DType::u8, {work});
  if (!arena.is_dry() && work > 0) ops.use_workspace(workspace);
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
  allocate(dry, ops, params_, model_, snapshot_, recipe, grid.tp, training);
  try {
    arena_ = std::make_unique<Arena>(ops, dry.used_bytes());
  } catch (const RuntimeFault& fault) {
    throw RuntimeFault(
        concat(fault.what(), "\nmemory of rank ", grid.world_rank, "\n", dry.table()));
  }
  allocate(*arena_, ops, params_, model_, snapshot_, recipe, grid.tp, training);
}

Network::~Network() {
  ops_.use_workspace({});
}

void size_network(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows,
                  bool training) {
  const auto ops = make_cpu_ops();
  const auto expert_group = make_planned_group(static_cast<int>(grid.ep));
  const auto tensor_group = make_planned_group(static_cast<int>(grid.tp));
  ParamTable params(recipe.model, recipe.optimizer, share_of(grid, recipe, training));
  const bool is_dense = recipe.model.num_moe_layers() == 0;
  const auto exchange =
      make_exchange(*ops,
                    std::make_unique<RoutingPlanner>(Model::exchange_shape(recipe, rows, grid.tp),
                                                     is_dense ? 1 : grid.ep),
                    is_dense, *expert_group,
                    planned_route(recipe.parallel, grid.ep, grid.expert_ranks_per_host()));
  const auto tensor = make_tensor_group(*ops, *tensor_group, *tensor_group);
  Model model(*ops, recipe, params, *exchange, *tensor, rows);
  CheckpointSnapshot snapshot;
  allocate(dry, *ops, params, model, snapshot, recipe, grid.tp, training);
}

}  // namespace openmoe
