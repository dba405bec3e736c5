// The MPI environment of a test executable.
#pragma once

#include "parallel/mpi_environment.h"

namespace openmoe::test {

MpiEnvironment& mpi();

}  // namespace openmoe::test
