#include "parallel/mpi_environment.h"

#include <mpi.h>

#include <cstdlib>

#include "core/base/error.h"
#include "parallel/mpi_communicator.h"

namespace openmoe {
namespace {

// Open MPI needs 0.2 s to find out that there is no network; who was started alone uses none. An
// explicit choice of the user's stays.
void spare_network_search_if_alone() {
  for (const char* of_launcher : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID"})
    if (std::getenv(of_launcher) != nullptr) return;
  setenv("OMPI_MCA_pml", "ob1", 0);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  spare_network_search_if_alone();
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
