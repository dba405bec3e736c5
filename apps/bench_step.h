// What the commands that time training steps share: their data, and what a step is worth.
#pragma once

#include <cstdint>
#include <vector>

#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"

namespace openmoe {

// Full rows of uniformly random tokens, loss on all of them.
Batch random_batch(const Recipe& recipe, std::int64_t rows, std::int64_t data_rank);

// Useful arithmetic of one step of all ranks: everything but the experts by count
// (flops_per_token), the experts by the slots that were really kept.
double step_flops(const Recipe& recipe, const BatchCounts& counts, const StepSums& sums);

// The upper one of two middle values. At least one value.
double median(std::vector<double> values);

}  // namespace openmoe
