// CheckpointSave: one checkpoint on its way to the disk, in the three parts that save_checkpoint
// (checkpoint.h) puts together: a folder that nobody reads, a file per rank, and the manifest with
// the folder's name. Between the first and the last, which are collective, each rank may take the
// time and the thread it wants.
#pragma once

#include <exception>
#include <stop_token>
#include <string>
#include <vector>

#include "apps/checkpoint.h"
#include "core/param_table.h"
#include "core/placement.h"
#include "parallel/process_grid.h"

namespace openmoe {

// One tensor of a table as a checkpoint knows it.
struct StoredTensor {
  std::string name;
  Tensor local;
  Placement placement;
};

// Every tensor of a parameter that checkpoints hold.
std::vector<StoredTensor> stored_tensors(const Param& param);
// Those of a table that this rank writes: each part of a tensor is written by one rank. The table
// may be without memory (Arena).
std::vector<StoredTensor> tensors_to_write(const ParamTable& table);

class CheckpointSave {
 public:
  // Makes the hidden folder, and removes what interrupted saves left. Collective over the world.
  // Throws as save_checkpoint does. `grid` must outlive this.
  CheckpointSave(const std::string& folder, const CheckpointMeta& meta, ProcessGrid& grid);

  const std::string& folder() const { return folder_; }

  // Writes this rank's file, on any thread; neither collective nor MPI. Called once. What goes
  // wrong is for publish() to tell. When a stop is requested it gives up soon.
  void write(const std::vector<StoredTensor>& tensors, std::stop_token stop = {});

  // When write() has returned on every rank: the checkpoint is complete. Collective; throws as
  // save_checkpoint does, also for what went wrong in write().
  void publish();

 private:
  std::string give_up(const std::string& reason) const;
  template <typename Action>
  void explain(Action&& action) const;

  std::string folder_, temporary_;
  CheckpointMeta meta_;
  ProcessGrid& grid_;
  std::string part_;  // of the manifest, ""; nothing was this rank's to write
  std::exception_ptr error_;
};

}  // namespace openmoe
