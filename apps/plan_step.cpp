#include "apps/plan_step.h"

#include <algorithm>
#include <memory>

#include "apps/network.h"
#include "apps/plan_parts.h"
#include "apps/step_agreement.h"
#include "apps/training_step.h"
#include "core/base/check.h"
#include "core/model/model.h"
#include "parallel/observed_communicator.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

// Training slots of an expert on one rank's rows.
std::int64_t slots_per_expert(const Recipe& recipe, std::int64_t tokens) {
  const RoutingConfig routing = recipe.routing.of_call(tokens);
  return tokens / routing.group_tokens * routing.capacity(recipe.model.num_experts, true);
}

NetworkParts make_plan_parts(Ops& ops, const Recipe& recipe, const RehearsalGrid& shape,
                             ProcessGrid& grid, std::int64_t rows, const RouteRows& route) {
  const ExchangeRoute travel = rehearsed_route(recipe, shape);
  return {travel,
          make_plan_exchange(ops, Model::exchange_shape(recipe, rows, grid.tp()),
                             recipe.model.num_moe_layers(), grid.expert(), travel, route),
          make_plan_tensor_group(grid.tensor())};
}

class Rehearsal {
 public:
  Rehearsal(const Recipe& recipe, const RehearsalGrid& grid, const RouteRows& route,
            StepListener& listener)
      : recipe_(recipe),
        listener_(listener),
        ops_(make_plan_ops(quiet_)),
        planned_world_(make_rehearsal_world(grid)),
        world_(make_observed_communicator(*planned_world_, observers_)),
        grid_(*world_, grid.ep, grid.tp),
        rows_(micro_batch_rows(recipe, grid.num_data_ranks())),
        network_(*ops_, grid, recipe, rows_, true,
                 make_plan_parts(*ops_, recipe, grid, grid_, rows_, route)),
        training_(network_, grid_, recipe) {
    // What it takes to be there is not part of a step.
    quiet_.listener = &listener;
    ops_->set_profile(&listener);
    observers_.add(listener);
  }

  void run(bool every_micro_batch) {
    const std::int64_t all_rows = recipe_.data.batch_rows / grid_.num_data_ranks();
    const std::int64_t micro_batches = (all_rows + rows_ - 1) / rows_;
    const bool repeats = !every_micro_batch && micro_batches > 1;
    if (repeats)
      training_.announce_micro_batches(
          [&](std::int64_t row) { listener_.on_repeat(row == 0 ? micro_batches - 1 : 1); });
    Batch batch;
    batch.resize(rows_ * (repeats ? 2 : micro_batches), recipe_.data.sequence_length);
    // Some tokens, so that the loss is a number and parameters are updated.
    std::fill(batch.loss_weights.begin(), batch.loss_weights.end(), 1.0f);
    std::fill(batch.segment_ids.begin(), batch.segment_ids.end(), 1);
    const BatchCounts counts = agree_on_step(batch, recipe_, grid_, 0).counts;
    // A step in which routers learn.
    const StepOutcome outcome = training_.run(batch, counts, recipe_.optimizer.router_frozen_steps);
    OPENMOE_CHECK(outcome.is_finite(), "a rehearsed step without its update");
  }

 private:
  // Passes on what happens once there is someone who listens.
  struct Quiet : WorkListener {
    StepListener* listener = nullptr;
    void on_work(const OpWork& work) override {
      if (listener != nullptr) listener->on_work(work);
    }
  };

  const Recipe& recipe_;
  StepListener& listener_;
  Quiet quiet_;
  std::unique_ptr<Ops> ops_;
  CollectiveObservers observers_;
  std::unique_ptr<Communicator> planned_world_, world_;
  ProcessGrid grid_;
  std::int64_t rows_;
  Network network_;
  TrainingStep training_;
};

}  // namespace

ExchangeRoute rehearsed_route(const Recipe& recipe, const RehearsalGrid& grid) {
  const ExchangeRoute route = planned_route(recipe.parallel, grid.ep, grid.expert_ranks_per_host());
  if (route.kind != ExchangeKind::two_level) return route;
  return {ExchangeKind::direct, 1, route.num_parts};
}

RouteRows balanced_rows(const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows) {
  const std::int64_t experts = recipe.model.num_experts, local = experts / grid.ep;
  const std::int64_t tokens = rows * recipe.data.sequence_length;
  const std::int64_t kept = std::min(2 * tokens, experts * slots_per_expert(recipe, tokens));
  const std::int64_t first = grid.world_rank / grid.tp % grid.ep * local;
  const auto rows_of = [=](std::int64_t e) {
    return (e + 1) * kept / experts - e * kept / experts;
  };
  return [=](std::int64_t, std::int64_t, std::span<std::int64_t> sent,
             std::span<std::int64_t> received) {
    for (std::int64_t e = 0; e < experts; ++e) sent[static_cast<std::size_t>(e)] = rows_of(e);
    for (std::size_t i = 0; i < received.size(); ++i)
      received[i] = rows_of(first + static_cast<std::int64_t>(i) % local);
  };
}

RouteRows most_rows(const Recipe& recipe, const RehearsalGrid& grid, std::int64_t rows) {
  const std::int64_t local = recipe.model.num_experts / grid.ep;
  const std::int64_t tokens = rows * recipe.data.sequence_length;
  const std::int64_t per_expert = std::min(tokens, slots_per_expert(recipe, tokens));
  const std::int64_t own = grid.world_rank / grid.tp % grid.ep;
  // `room` rows at most in blocks of one rank's experts, those of this rank last.
  const auto fill = [=](std::span<std::int64_t> counts, std::int64_t room) {
    for (std::int64_t i = 0; i < grid.ep; ++i) {
      const std::int64_t rank = (own + 1 + i) % grid.ep;
      std::int64_t of_rank = std::min(room, 2 * tokens);
      for (std::int64_t e = 0; e < local; ++e) {
        std::int64_t& count = counts[static_cast<std::size_t>(rank * local + e)];
        count = std::min(of_rank, per_expert);
        of_rank -= count;
        room -= count;
      }
    }
  };
  return [=](std::int64_t, std::int64_t, std::span<std::int64_t> sent,
             std::span<std::int64_t> received) {
    fill(sent, 2 * tokens);
    fill(received, grid.ep * 2 * tokens);
  };
}

void rehearse_step(const Recipe& recipe, const RehearsalGrid& grid, const RouteRows& route,
                   StepListener& listener, bool every_micro_batch) {
  Rehearsal(recipe, grid, route, listener).run(every_micro_batch);
}

}  // namespace openmoe
