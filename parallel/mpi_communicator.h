// MpiCommunicator: the Communicator verbs over MPI. mpi.h stays in the .cpp file.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/communicator.h"

namespace openmoe {

// Where one verb becomes several MPI calls. Tests lower both.
struct MpiLimits {
  // Open MPI allocates a temporary per all-reduce and faults its pages in on every call: 64 MiB in
  // pieces of 1 to 4 MiB is five times faster than in one.
  std::int64_t all_reduce_piece_bytes = std::int64_t{2} << 20;
  std::int64_t max_count = 0x7fffffff;  // counts of MPI 3 are int
};

// A duplicate of MPI_COMM_WORLD. MPI must be initialised.
std::unique_ptr<Communicator> make_world_communicator(const MpiLimits& limits = {});

}  // namespace openmoe
