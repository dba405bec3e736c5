// What the ranks tell each other at the start of a step, in one reduction: the counts that losses
// are divided by, and whether anyone was asked to stop.
#pragma once

#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "parallel/process_grid.h"

namespace openmoe {

// The same on every rank.
struct StepAgreement {
  BatchCounts counts;   // of the global batch
  int stop_signal = 0;  // some rank caught it: all stop before this step; 0: go on
};

// `batch` is this rank's part of the step's rows, `stop_signal` what this rank caught of
// StopSignals::kSignals, or 0. Collective.
StepAgreement agree_on_step(const Batch& batch, const Recipe& recipe, ProcessGrid& grid,
                            int stop_signal);

}  // namespace openmoe
