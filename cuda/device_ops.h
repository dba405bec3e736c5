// The CUDA backend as the rest of the program sees it. No CUDA type here: this header compiles
// without a CUDA toolkit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/moe/routing_plan.h"
#include "core/ops.h"
#include "parallel/communicator.h"

namespace openmoe {

// Whether this executable holds the backend.
bool has_cuda_backend();

// Number of usable CUDA devices, 0 where there is no device or no driver.
int num_cuda_devices();

// Ops of one device, which run in the order of their calls. Throws UserError when there is no such
// device, the driver is older than the toolkit this was built with, or the device's architecture is
// none of those built for; each with the way out.
std::unique_ptr<Ops> make_cuda_ops(int device_index);

// The arithmetic of a token exchange over `ep` ranks for tensors of `ops`, which make_cuda_ops made
// and which must outlive it.
std::unique_ptr<RoutingPlanner> make_cuda_planner(Ops& ops, const ExchangeShape& shape,
                                                  std::int64_t ep);

// A DeviceCommunicator over NCCL, one rank per device. Collective over the group, the same ranks in
// host memory. Both must outlive it.
std::unique_ptr<Communicator> make_nccl_communicator(Ops& ops, Communicator& group);

// "NVIDIA H100 80GB HBM3, sm_90, 79.1 GiB, driver 13.0, runtime 13.0", for start-up logs.
std::string describe_cuda_device(int device_index);

// "GPU-8a1d...", as nvidia-smi -L has it: no other device anywhere has the same. The index is below
// num_cuda_devices().
std::string cuda_device_id(int device_index);

struct CudaDevice {
  std::string name;      // "NVIDIA H100 80GB HBM3"
  int architecture = 0;  // 90
  std::int64_t memory_bytes = 0;
  std::int64_t multiprocessors = 0;
};
CudaDevice current_cuda_device();  // of the ops that were made last

// Of the driver, the runtime and the libraries that this executable calls: {"NCCL", "2.28.9"}; "not
// found" for what this machine lacks.
std::vector<std::pair<std::string, std::string>> cuda_library_versions();

}  // namespace openmoe
