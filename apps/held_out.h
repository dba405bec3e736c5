// Losses on the held-out documents of a source, for validation during training and for evaluate.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "apps/network.h"
#include "core/batch.h"
#include "core/model/step_stats.h"
#include "data/batch_stream.h"
#include "parallel/process_grid.h"

namespace openmoe {

// Over all ranks.
struct HeldOutResult {
  StepSums sums;
  BatchCounts counts;
  StepLosses losses;
};

// The first `num_rows` held-out rows of `source` under the objective of `step`, with the evaluation
// capacity. Blocks of the network's rows go round the data ranks; short blocks are filled with
// padding, so that every rank takes part in every exchange and groups are the same on any grid.
// `observe`, if given, sees each block of this rank. Collective.
HeldOutResult evaluate_held_out(Network& network, ProcessGrid& grid, BatchStream& stream,
                                std::int64_t step, const std::string& source, std::int64_t num_rows,
                                const std::function<void(const Batch&)>& observe = {});

}  // namespace openmoe
