// The end of a job: ranks find out whether all of them got there. mpi.h stays in the .cpp file.
#pragma once

#include <chrono>
#include <string>

namespace openmoe {

// Returns true once every rank of the job has called this, false when that has not happened within
// `patience`, after which nothing but MpiEnvironment::abort may follow. A negative patience waits
// for ever.
bool wait_for_all_ranks(std::chrono::milliseconds patience);

std::string mpi_library_version();

}  // namespace openmoe
