#include "apps/plan_step.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "apps/plan_parts.h"
#include "apps/step_agreement.h"
#include "apps/training_step.h"
#include "core/arena.h"
#include "core/model/model.h"
#include "core/param_table.h"
#include "core/train/adafactor.h"
#include "parallel/gradient_reducer.h"
#include "parallel/observed_communicator.h"
#include "parallel/process_grid.h"
#include "parallel/sharded_update.h"

namespace openmoe {
namespace {

// Training slots of an expert on one rank's rows.
std::int64_t slots_per_expert(const Recipe& recipe, std::int64_t tokens) {
  const RoutingConfig routing = recipe.routing.of_call(tokens);
  return tokens / routing.group_tokens * routing.capacity(recipe.model.num_experts, true);
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
        rows_(micro_batch_rows(recipe, grid)),
        params_(recipe.model, recipe.optimizer,
                {grid.ep, grid_.ep_rank(), grid.tp, grid_.tp_rank(), grid.dp, grid_.dp_rank(),
                 recipe.parallel.shard_update}),
        exchange_(make_plan_exchange(Model::exchange_shape(recipe, rows_, grid.tp),
                                     recipe.model.num_moe_layers(), grid_.expert(), route)),
        tensor_(make_plan_tensor_group(grid_.tensor())),
        model_(*ops_, recipe, params_, *exchange_, *tensor_, rows_) {
    Arena dry;
    allocate(dry);
    arena_ = std::make_unique<Arena>(*ops_, dry.used_bytes());
    allocate(*arena_);
    const std::int64_t bucket_kb =
        recipe.parallel.update_in_backward ? 0 : recipe.parallel.reduction_bucket_kb;
    reducer_ = std::make_unique<GradientReducer>(*ops_, params_, grid_, bucket_kb << 10);
    if (recipe.parallel.shard_update) sharded_.emplace(*ops_, params_, grid_, *tensor_);
    // What it takes to be there is not part of a step.
    quiet_.listener = &listener;
    ops_->set_profile(&listener);
    observers_.add(listener);
  }

  void run(bool every_micro_batch) {
    const std::int64_t all_rows = recipe_.data.batch_rows / grid_.num_data_ranks();
    const std::int64_t micro_batches = (all_rows + rows_ - 1) / rows_;
    batch_.resize(rows_, recipe_.data.sequence_length);
    counts_ = agree_on_step(batch_, recipe_, grid_, 0).counts;
    sums_ = StepSums(recipe_.model.num_moe_layers(), recipe_.model.num_experts);
    if (recipe_.parallel.update_in_backward)
      run_in_backward();
    else
      run_whole(micro_batches, every_micro_batch);
  }

 private:
  // Passes on what happens once there is someone who listens.
  struct Quiet : WorkListener {
    StepListener* listener = nullptr;
    void on_work(const OpWork& work) override {
      if (listener != nullptr) listener->on_work(work);
    }
  };

  void allocate(Arena& arena) {
    params_.allocate(
        arena, recipe_.parallel.update_in_backward ? GradientMemory::one : GradientMemory::whole,
        recipe_.run.compute_type);
    model_.allocate(arena, true);
  }

  // As TrainingStep::run_whole.
  void run_whole(std::int64_t micro_batches, bool every_micro_batch) {
    params_.zero_gradients(*ops_);
    if (every_micro_batch)
      for (std::int64_t i = 1; i < micro_batches; ++i) model_.train(batch_, counts_, sums_);
    else if (micro_batches > 1) {
      listener_.on_repeat(micro_batches - 1);
      model_.train(batch_, counts_, sums_);
      listener_.on_repeat(1);
    }
    if (reducer_->has_buckets())
      model_.observe_gradients([this](Param& param) { reducer_->complete(param); });
    model_.train(batch_, counts_, sums_);
    ops_->enter("gradient reduction");
    if (sharded_) {
      sharded_->reduce();
      sum_over_ranks(sums_, grid_);
      sharded_->grad_norm();
      sharded_->update(recipe_.optimizer, step());
      return;
    }
    if (reducer_->has_buckets())
      reducer_->finish();
    else
      reducer_->reduce();
    sum_over_ranks(sums_, grid_);
    reducer_->grad_norm();
    adafactor_step(*ops_, *tensor_, params_, recipe_.optimizer, step());
  }

  // As TrainingStep::run_in_backward.
  void run_in_backward() {
    bool is_first = true;
    model_.observe_gradients([&](Param& param) {
      if (std::exchange(is_first, false)) sum_over_ranks(sums_, grid_);
      const char* const part = ops_->enter("optimizer");
      reducer_->reduce(param);
      reducer_->add_squares(param);
      adafactor_update(*ops_, *tensor_, param, recipe_.optimizer, step());
      ops_->zero(param.grad);
      ops_->enter(part);
    });
    model_.train(batch_, counts_, sums_);
    reducer_->norm_of_added();
  }

  // One in which routers learn.
  std::int64_t step() const { return recipe_.optimizer.router_frozen_steps; }

  const Recipe& recipe_;
  StepListener& listener_;
  Quiet quiet_;
  std::unique_ptr<Ops> ops_;
  CollectiveObservers observers_;
  std::unique_ptr<Communicator> planned_world_, world_;
  ProcessGrid grid_;
  std::int64_t rows_;
  ParamTable params_;
  std::unique_ptr<TokenExchange> exchange_;
  std::unique_ptr<TensorGroup> tensor_;
  Model model_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<GradientReducer> reducer_;
  std::optional<ShardedUpdate> sharded_;
  Batch batch_;
  BatchCounts counts_;
  StepSums sums_;
};

}  // namespace

std::int64_t micro_batch_rows(const Recipe& recipe, const RehearsalGrid& grid) {
  const std::int64_t rows = recipe.data.batch_rows / (grid.dp * grid.ep);
  return recipe.parallel.micro_batch_rows > 0 ? std::min(rows, recipe.parallel.micro_batch_rows)
                                              : rows;
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
