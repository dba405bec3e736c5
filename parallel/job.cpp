#include "parallel/job.h"

#include <mpi.h>

#include <array>
#include <thread>

#include "core/base/error.h"

namespace openmoe {

bool wait_for_all_ranks(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  MPI_Request request = MPI_REQUEST_NULL;
  // On MPI_COMM_WORLD itself: all other traffic runs on duplicates of it, so nothing here can be
  // taken for something else.
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS)
    throw RuntimeFault("MPI_Ibarrier failed at the end of the job");
  for (;;) {
    int done = 0;
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS)
      throw RuntimeFault("MPI_Test failed at the end of the job");
    if (done != 0) return true;
    if (patience.count() >= 0 && std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data(), static_cast<std::size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace openmoe
