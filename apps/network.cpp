#include "apps/network.h"

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
  if (is_dense || expert_group.size() == 1) return std::make_unique<LocalExchange>(shape);
  return std::make_unique<ExpertExchange>(shape, expert_group, route);
}

// Nobody is there to say which hosts they are on.
ExchangeRoute planned_route(const ParallelConfig& config) {
  if (config.exchange == ExchangeKind::fixed_capacity) return {config.exchange, 1};
  const bool by_nodes = config.exchange == ExchangeKind::two_level && config.ranks_per_node > 0;
  return by_nodes ? ExchangeRoute{config.exchange, config.ranks_per_node} : ExchangeRoute{};
}

// Of a ProcessGrid or a RehearsalGrid.
ParamShare share_of(std::int64_t dp, std::int64_t ep, std::int64_t tp, std::int64_t world_rank,
                    const Recipe& recipe, bool training) {
  const RehearsalGrid grid{dp, ep, tp, world_rank};
  return {ep,
          grid.ep_rank(),
          tp,
          grid.tp_rank(),
          dp,
          grid.dp_rank(),
          training && recipe.parallel.shard_update};
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
    : ops_(ops),
      params_(recipe.model, recipe.optimizer,
              share_of(grid.dp(), grid.ep(), grid.tp(), grid.world_rank(), recipe, training)),
      route_(recipe.model.num_moe_layers() > 0 ? choose_route(recipe.parallel, grid.expert())
                                               : ExchangeRoute{}),
      exchange_(ops.device() == Device::cuda
                    ? make_cuda_exchange(ops, Model::exchange_shape(recipe, rows, grid.tp()),
                                         grid.device_expert())
                    : make_exchange(Model::exchange_shape(recipe, rows, grid.tp()),
                                    recipe.model.num_moe_layers() == 0, grid.expert(), route_)),
      tensor_(make_host_tensor_group(ops, grid.tensor())),
      model_(ops, recipe, params_, *exchange_, *tensor_, rows) {
  if (ops.device() == Device::cuda && grid.tp() > 1)
    throw UserError(concat("--tp: found ", grid.tp(),
                           ", allowed with --device cuda: 1; tensor parallelism runs on --device "
                           "cpu so far"));
  if (ops.device() == Device::cuda && route_.kind != ExchangeKind::direct)
    throw UserError(concat("parallel.exchange: found ", enum_name(recipe.parallel.exchange),
                           ", allowed with --device cuda: direct"));
  if (ops.device() == Device::cuda && recipe.run.compute_type == ComputeType::bf16)
    throw UserError(
        "run.compute_type: found bf16, allowed with --device cuda: f32; bf16 training runs on "
        "--device cpu so far");
  if (ops.device() == Device::cuda && training && recipe.run.checkpoint_in_background)
    throw UserError(
        "run.checkpoint_in_background: found true, allowed with --device cuda: false; it runs on "
        "--device cpu so far");
  Arena dry;
  allocate(dry, params_, model_, snapshot_, recipe, training);
  arena_ = std::make_unique<Arena>(ops, dry.used_bytes());
  allocate(*arena_, params_, model_, snapshot_, recipe, training);
}

void size_network(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows,
                  bool training) {
  const std::int64_t ep = grid.ep, tp = grid.tp;
  const auto ops = make_cpu_ops();
  const auto expert_group = make_planned_group(static_cast<int>(ep));
  const auto tensor_group = make_planned_group(static_cast<int>(tp));
  ParamTable params(recipe.model, recipe.optimizer,
                    share_of(grid.dp, ep, tp, grid.world_rank, recipe, training));
  const auto exchange =
      make_exchange(Model::exchange_shape(recipe, rows, tp), recipe.model.num_moe_layers() == 0,
                    *expert_group, planned_route(recipe.parallel));
  const auto tensor = make_host_tensor_group(*ops, *tensor_group);
  Model model(*ops, recipe, params, *exchange, *tensor, rows);
  CheckpointSnapshot snapshot;
  allocate(dry, params, model, snapshot, recipe, training);
}

}  // namespace openmoe
