// How long each kind of op of a step must take at least.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "apps/device_peaks.h"
#include "core/config/recipe.h"
#include "parallel/rehearsal_world.h"

namespace openmoe {

// What the ops of one kind do in a step.
struct OpCost {
  std::int64_t calls = 0;
  double flops = 0.0;
  double bytes = 0.0;             // of the tensors read and written, each once a call
  double flop_seconds = 0.0;      // at the peak of their operands
  double roofline_seconds = 0.0;  // per call the longer of flops / peak and bytes / peak
};

// By op, of a step of `grid.world_rank` in which every expert is chosen equally often; from a
// rehearsal (plan_step.h), which needs no device.
std::map<std::string, OpCost> planned_costs(const Recipe& recipe, const RehearsalGrid& grid,
                                            const Peaks& peaks);

}  // namespace openmoe
