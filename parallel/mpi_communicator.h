// MpiCommunicator: the Communicator verbs over MPI. mpi.h stays in the .cpp file.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace openmoe {

// A duplicate of MPI_COMM_WORLD. MPI must be initialised.
std::unique_ptr<Communicator> make_world_communicator();

}  // namespace openmoe
