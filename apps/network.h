// Network: a model on this rank with everything it needs: parameters, token exchange, memory.
// Shared by train, evaluate, selftest and the rehearsals of plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "apps/background_save.h"
#include "core/arena.h"
#include "core/config/recipe.h"
#include "core/model/model.h"
#include "core/moe/token_exchange.h"
#include "core/ops.h"
#include "core/param_table.h"
#include "core/tensor_group.h"
#include "parallel/process_grid.h"
#include "parallel/rehearsal_world.h"
#include "parallel/row_transport.h"

namespace openmoe {

// What of a network talks to other ranks.
struct NetworkParts {
  ExchangeRoute route;                      // that `exchange` takes
  std::unique_ptr<TokenExchange> exchange;  // of Model::exchange_shape
  std::unique_ptr<TensorGroup> tensor;
  std::string attention;  // whose kernels, in words: Ops::choose_attention
};

class Network {
 public:
  // `rows` of one micro-batch on this rank: whole routing groups. All memory is allocated here;
  // parameters are zero until initialised or loaded. `ops` and `grid` must outlive this. Throws
  // RuntimeFault when the memory cannot be had.
  Network(Ops& ops, ProcessGrid& grid, const Recipe& recipe, std::int64_t rows, bool training);
  // The same with parts of the caller's own, on a rank of a grid that may not exist.
  Network(Ops& ops, const RehearsalGrid& grid, const Recipe& recipe, std::int64_t rows,
          bool training, NetworkParts parts);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  ParamTable& params() { return params_; }
  const ParamTable& params() const { return params_; }
  Model& model() { return model_; }
  const Arena& arena() const { return *arena_; }
  TensorGroup& tensor() { return *tensor_; }
  CheckpointSnapshot& snapshot() { return snapshot_; }   // run.checkpoint_in_background
  const ExchangeRoute& route() const { return route_; }  // of rows to their experts
  const std::string& attention() const { return attention_; }
  Ops& ops() { return ops_; }

 private:
  Ops& ops_;
  ParamTable params_;
  ExchangeRoute route_;
  std::string attention_;
  std::unique_ptr<TokenExchange> exchange_;
  std::unique_ptr<TensorGroup> tensor_;
  Model model_;
  CheckpointSnapshot snapshot_;
  std::unique_ptr<Arena> arena_;
};

// Memory of one rank of a grid, by a dry run of the same allocation into `dry`; needs neither ranks
// nor devices.
void size_network(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows,
                  bool training);

}  // namespace openmoe
