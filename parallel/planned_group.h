// PlannedGroup: a group of ranks that does not exist, to size a job before it is queued. It has a
// size and nothing else: any verb is a programmer error.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace openmoe {

// Rank 0 of `size` ranks. Its splits are groups of one, which is enough for the checks of a
// ProcessGrid.
std::unique_ptr<Communicator> make_planned_group(int size);

}  // namespace openmoe
