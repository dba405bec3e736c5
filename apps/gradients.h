// One training step up to the gradients, shared by train, bench and selftest, so that what is
// proven and what is measured is what trains.
#pragma once

#include <cstdint>
#include <functional>

#include "apps/network.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "parallel/gradient_reducer.h"
#include "parallel/process_grid.h"

namespace openmoe {

// Rows [begin, begin + rows) of `batch`; rows past its end become padding.
void copy_rows(Batch& out, const Batch& batch, std::int64_t begin, std::int64_t rows);

// Counts of the global batch of which `batch` is this rank's part. Collective.
BatchCounts count_global(const Batch& batch, const Recipe& recipe, ProcessGrid& grid);

// Adds up the sums of all data ranks. Collective.
void sum_over_ranks(StepSums& sums, ProcessGrid& grid);

// Computes the gradients of a network. All references must outlive this.
class GradientStep {
 public:
  GradientStep(Network& network, ProcessGrid& grid, const Recipe& recipe);

  // Forward and backward passes over micro-batches of the network's rows, and the reduction:
  // afterwards every Param::grad is that of the global batch's loss, whose counts are `counts`.
  // Returns the sums over all ranks. Collective.
  // `observe`, if given, is called after each micro-batch with it and its first row in `batch`.
  using Observer = std::function<void(const Batch&, std::int64_t)>;
  StepSums compute(const Batch& batch, const BatchCounts& counts, const Observer& observe = {});
  // Norm of all gradients of all ranks. Collective.
  double grad_norm() { return reducer_.grad_norm(); }

 private:
  Network& network_;
  ProcessGrid& grid_;
  const ModelConfig& model_;
  GradientReducer reducer_;
  Batch micro_batch_;
};

}  // namespace openmoe
