// main of every test executable: MPI around Catch2. Under mpirun each rank runs the same cases in the same order; a rank
// that fails makes mpirun fail. A program started alone is rank 0 of 1.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include "parallel/mpi_environment.h"
#include "test/support/mpi_world.h"

namespace openmoe::test {

MpiEnvironment* g_environment = nullptr;

MpiEnvironment& mpi() {
  return *g_environment;
}

}  // namespace openmoe::test

int main(int argc, char** argv) {
  openmoe::MpiEnvironment environment(&argc, &argv);
  openmoe::test::g_environment = &environment;
  // The number of failed cases; with --list-tests, Catch2 v2 returns the number of cases.
  const int failed = Catch::Session().run(argc, argv);
  // The ranks that passed must not wait in MPI_Finalize for one that is stuck in a collective of a failed case.
  if (failed != 0 && environment.world_size() > 1) openmoe::MpiEnvironment::abort(1);
  return failed;
}
