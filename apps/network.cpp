#include "apps/network.h"

#include "core/moe/local_exchange.h"
#include "parallel/expert_exchange.h"

namespace openmoe {
namespace {

std::unique_ptr<TokenExchange> make_exchange(const ExchangeShape& shape, ProcessGrid& grid) {
  if (grid.ep() == 1) return std::make_unique<LocalExchange>(shape);
  return std::make_unique<ExpertExchange>(shape, grid.expert());
}

// The one function that both sizes and allocates.
void allocate(Arena& arena, ParamTable& params, Model& model, bool training) {
  params.allocate(arena, training);
  model.allocate(arena, training);
}

}  // namespace

Network::Network(Ops& ops, ProcessGrid& grid, const Recipe& recipe, std::int64_t rows, bool training)
    : ops_(ops),
      params_(recipe.model, recipe.optimizer, grid.ep(), grid.ep_rank()),
      exchange_(make_exchange(Model::exchange_shape(recipe, rows), grid)),
      model_(ops, recipe, params_, *exchange_, rows) {
  Arena dry;
  allocate(dry, params_, model_, training);
  arena_ = std::make_unique<Arena>(ops, dry.used_bytes());
  allocate(*arena_, params_, model_, training);
}

}  // namespace openmoe
