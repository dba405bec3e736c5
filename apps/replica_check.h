// Whether parameters that several ranks hold are still the same bits on all of them. They are
// updated from the same sums everywhere, so a difference means that a memory, a link or a processor
// made a mistake.
#pragma once

#include <cstdint>
#include <string>

#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

// `params` in host memory. Collective over the world; where all is well, 16 bytes per parameter are
// reduced over the ranks that hold it, and 8 over all. The same text on every rank: "" where all is
// well, else an explanation that names the first tensor that differs and the ranks that hold other
// bits than most.
std::string compare_replicas(const ParamTable& params, ProcessGrid& grid, std::int64_t steps_done);

}  // namespace openmoe
