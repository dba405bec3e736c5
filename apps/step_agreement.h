// What the ranks tell each other at the start of a step, in one reduction: the counts that losses
// are divided by, whether anyone was asked to stop, and how long each worked.
#pragma once

#include <vector>

#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "parallel/process_grid.h"

namespace openmoe {

// What one rank has to say besides its rows.
struct RankNote {
  int stop_signal = 0;          // it caught this one of StopSignals::kSignals; 0: none
  double worked_seconds = 0.0;  // since the last agreement
};

// The same on every rank.
struct StepAgreement {
  BatchCounts counts;                  // of the global batch
  int stop_signal = 0;                 // some rank caught it: all stop before this step; 0: go on
  std::vector<double> worked_seconds;  // by data rank
};

// `batch` is this rank's part of the step's rows. Collective.
StepAgreement agree_on_step(const Batch& batch, const Recipe& recipe, ProcessGrid& grid,
                            const RankNote& note);

}  // namespace openmoe
