// How many threads a rank computes with.
#pragma once

#include "parallel/communicator.h"

namespace openmoe {

// Physical cores that this process may run on: its CPU mask without hyper-threads, and no more than
// the container's quota.
int available_cores();

// Sets the OpenMP threads of this rank: `requested` if above 0; else OMP_NUM_THREADS; else its
// share of the available cores among the ranks that have the same CPU mask on the same host.
// Collective over `world`; called once, before any op.
// Returns the number.
int set_num_threads(Communicator& world, int requested);

}  // namespace openmoe
