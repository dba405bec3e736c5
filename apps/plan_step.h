// A training step rehearsed: the real model, reducer and optimizer run on a backend that computes
// nothing (plan_ops.h) and on ranks that do not exist (parallel/rehearsal_world.h). What they ask
// of both is what a step of `train` asks of a rank; a test compares the collectives with a real
// step's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "apps/plan_ops.h"
#include "core/config/recipe.h"
#include "core/op_observer.h"
#include "parallel/collective_observer.h"
#include "parallel/rehearsal_world.h"
#include "parallel/row_transport.h"

namespace openmoe {

// Told of everything that the rehearsed rank does, in its order.
class StepListener : public WorkListener, public CollectiveObserver, public OpObserver {
 public:
  // What follows is done so many times.
  virtual void on_repeat(std::int64_t times) = 0;
};

// What the routers decide, which a plan cannot know: the rows of one MoE layer (from 0, among
// those) in one micro-batch. sent (E): rows of this rank to each expert. received (ep * El): rows
// from source rank r for local expert e, at r * El + e.
using RouteRows =
    std::function<void(std::int64_t micro_batch, std::int64_t moe_layer,
                       std::span<std::int64_t> sent, std::span<std::int64_t> received)>;

// Every expert is chosen equally often, and keeps what it has slots for.
RouteRows balanced_rows(const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows);
// The most that this rank can send to other ranks, and receive from them. More than one rank can
// meet at once, but each may.
RouteRows most_rows(const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows);

// How rows travel to their experts in a rehearsal: as planned_route says, but for two_level, in
// whose place stands direct.
ExchangeRoute rehearsed_route(const Recipe& recipe, const RehearsalGrid& grid);

// One step of the recipe as `grid.world_rank` lives it, from the agreement on its counts to the
// update. `route` that depends on the micro-batch: `every_micro_batch`, else those before the last
// are rehearsed once. The recipe must fit the grid (ProcessGrid::check).
void rehearse_step(const Recipe& recipe, const RehearsalGrid& grid, const RouteRows& route,
                   StepListener& listener, bool every_micro_batch = false);

}  // namespace openmoe
