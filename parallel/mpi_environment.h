// MpiEnvironment: MPI_Init_thread to MPI_Finalize, and the world communicator. A program started
// without mpirun is rank 0 of 1.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace openmoe {

class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);  // throws RuntimeFault
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  Communicator& world() { return *world_; }
  int world_rank() const { return world_->rank_in_group(); }
  int world_size() const { return world_->size(); }
  int node_rank() const { return node_rank_; }

  // Ends every rank of the job at once with this exit code. For faults that the other ranks cannot
  // know of.
  [[noreturn]] static void abort(int exit_code);

 private:
  std::unique_ptr<Communicator> world_;
  int node_rank_ = 0;
};

}  // namespace openmoe
