// HostParams: the values and optimizer state of a ParamTable in host memory, where files are read
// and written. For a table that is there already it is the table itself, and nothing is copied.
#pragma once

#include <vector>

#include "core/ops.h"
#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

class HostParams {
 public:
  // Host memory for all that `params` holds besides gradients. Both must outlive this.
  HostParams(ParamTable& params, Ops& ops);
  HostParams(const HostParams&) = delete;
  HostParams& operator=(const HostParams&) = delete;

  ParamTable& table() { return is_mirror() ? mirror_ : params_; }
  void download();  // from the device
  // Also what products read of the values that ranks divide, the part of these that replicas share.
  void download_operands();
  // To the device, and to the rounded copies that products read. Collective over the world.
  void upload(ProcessGrid& grid);

 private:
  bool is_mirror() const { return ops_.device() != Device::host; }
  // Calls visit(tensor of the device, tensor of the host) for every pair.
  template <typename Visit>
  void for_each_pair(Visit&& visit);

  ParamTable& params_;
  Ops& ops_;
  ParamTable mirror_;
  std::vector<std::vector<float>> memory_;
  std::vector<std::vector<BFloat16>> operands_;
};

}  // namespace openmoe
