// This machine, measured: what --measure plans with.
#pragma once

#include "apps/machine.h"
#include "parallel/mpi_environment.h"

namespace openmoe {

// Arithmetic, memory and MPI as the ranks of this job find them, all at the same time, with the
// threads they have; the slowest rank counts. Takes about two seconds. Links that the job has no
// ranks for (none on one rank, between nodes on one node) are given those that it has. Collective.
// Throws UserError where hosts do not have one equal stretch of ranks each.
Machine measure_machine(MpiEnvironment& mpi);

}  // namespace openmoe
