#include "parallel/mpi_environment.h"

#include <mpi.h>

#include "core/base/error.h"
#include "parallel/mpi_communicator.h"

namespace openmoe {

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
    throw RuntimeFault("MPI_Init_thread failed");
  if (provided < MPI_THREAD_FUNNELED)
    throw RuntimeFault("this MPI library does not support MPI_THREAD_FUNNELED");
  world_ = make_world_communicator();
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &node_rank_);
  MPI_Comm_free(&node);
}

MpiEnvironment::~MpiEnvironment() {
  world_.reset();
  MPI_Finalize();
}

void MpiEnvironment::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  __builtin_unreachable();
}

}  // namespace openmoe
