// One training step, shared by train, bench and selftest, so that what is proven and what is
// measured is what trains.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/network.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "parallel/gradient_reducer.h"
#include "parallel/process_grid.h"
#include "parallel/sharded_update.h"

namespace openmoe {

// Rows a rank computes at once under this recipe on a grid of so many data ranks.
std::int64_t micro_batch_rows(const Recipe& recipe, std::int64_t num_data_ranks);

// Rows [begin, begin + rows) of `batch`; rows past its end become padding.
void copy_rows(Batch& out, const Batch& batch, std::int64_t begin, std::int64_t rows);

// Throws UserError for the port's rule of capacity: its groups are whatever one call holds, so that
// a loss would depend on the grid and on micro-batches.
void check_trainable(const Recipe& recipe);

// Adds up the sums of all data ranks. Collective.
void sum_over_ranks(StepSums& sums, ProcessGrid& grid);

// Of all ranks.
struct StepOutcome {
  StepSums sums;
  StepLosses losses;
  double grad_norm = 0.0;
  bool was_accepted = true;  // false: no parameter was updated, see TrainingStep::accept_losses

  // When it is not, no parameter was updated; with parallel.update_in_backward, none when the loss
  // is not finite, else those whose own gradient is.
  bool is_finite() const;
};

// Trains a network. All references must outlive this; one at a time for a network.
class TrainingStep {
 public:
  TrainingStep(Network& network, ProcessGrid& grid, const Recipe& recipe);
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;
  ~TrainingStep();

  // Forward and backward passes over micro-batches of the network's rows, reduction, update: step
  // `step` of the schedule. `counts` are those of the global batch. Afterwards every Param::grad is
  // that of the global batch's loss, unless gradients have one place between them or the update is
  // sharded. `observe`, if
  // given, is called after each micro-batch with it and its first row in `batch`. Collective.
  using Observer = std::function<void(const Batch&, std::int64_t)>;
  StepOutcome run(const Batch& batch, const BatchCounts& counts, std::int64_t step,
                  const Observer& observe = {});

  // Told before each micro-batch of its first row.
  using Announcement = std::function<void(std::int64_t)>;
  void announce_micro_batches(Announcement announce) { announce_ = std::move(announce); }

  // Asked in every step whose loss is finite whether the parameters are to be updated; it must say
  // the same on every rank. Empty: always.
  using Acceptance = std::function<bool(const StepLosses&)>;
  void accept_losses(Acceptance accepts) { accepts_ = std::move(accepts); }

  // After a step that was not finite: what is known of where that began, for a message; the same
  // on every rank. Collective.
  std::string describe_non_finite();

 private:
  void run_micro_batches(const Batch& batch, const BatchCounts& counts, StepSums& sums,
                         const Observer& observe);
  bool accepts(const StepLosses& losses) const;
  void mark_bad_gradient(const Param& param);
  StepOutcome run_whole(const Batch& batch, const BatchCounts& counts, std::int64_t step,
                        const Observer& observe);
  StepOutcome run_in_backward(const Batch& batch, const BatchCounts& counts, std::int64_t step,
                              const Observer& observe);

  Network& network_;
  ProcessGrid& grid_;
  const Recipe& recipe_;
  GradientReducer reducer_;
  std::optional<ShardedUpdate> sharded_;  // parallel.shard_update
  Batch micro_batch_;
  Acceptance accepts_;
  Announcement announce_;
  // By place in the table: rank + 1 where the gradient of the last step, if that was not finite, is
  // not finite here; else 0.
  std::vector<std::int64_t> bad_gradients_;
};

}  // namespace openmoe
