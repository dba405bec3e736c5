// A library for LD_PRELOAD that damages sums over ranks, as a broken link or memory would: of the
// all-reduces of more than 1,000 f32 values, the one of number OPENMOE_DAMAGED_CALL (from 0) ends
// with a value that is not a number, on every rank; or, with OPENMOE_DAMAGED_RANK, with a value of
// the wrong sign and size, on that rank of the world alone.
#define OMPI_SKIP_MPICXX 1  // the C interface alone: mpirun itself is loaded beside this too
#include <mpi.h>

#include <cstdlib>
#include <limits>

extern "C" int MPI_Allreduce(const void* sent, void* received, int count, MPI_Datatype type,
                             MPI_Op op, MPI_Comm comm) {
  static int calls = 0;
  const int status = PMPI_Allreduce(sent, received, count, type, op, comm);
  const char* const wanted = std::getenv("OPENMOE_DAMAGED_CALL");
  if (type != MPI_FLOAT || count <= 1000 || wanted == nullptr || calls++ != std::atoi(wanted))
    return status;
  float& value = static_cast<float*>(received)[count / 3];
  const char* const only = std::getenv("OPENMOE_DAMAGED_RANK");
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (only == nullptr)
    value = std::numeric_limits<float>::quiet_NaN();
  else if (rank == std::atoi(only))
    value = -2.0f * value - 0.001f;
  return status;
}
