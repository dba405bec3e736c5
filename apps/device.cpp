#include "apps/device.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/cpu_ops.h"
#include "cuda/device_ops.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

// The device of this rank. A rank that sees one device alone was given it by the scheduler.
int device_of(const MpiEnvironment& mpi) {
  return num_cuda_devices() == 1 ? 0 : mpi.node_rank();
}

// Devices of all ranks, "" where there is none. Collective.
std::vector<std::string> find_devices(MpiEnvironment& mpi) {
  const int device = device_of(mpi);
  return mpi.world().all_gather(device < num_cuda_devices() ? cuda_device_id(device)
                                                            : std::string());
}

// Which rank sees no device for itself; "" if all do.
std::string without_device(const std::vector<std::string>& ids) {
  const auto rank = std::find(ids.begin(), ids.end(), "");
  return rank == ids.end() ? "" : concat("rank ", rank - ids.begin(), " sees no GPU of its own");
}

// Why NCCL cannot serve these ranks; "" if it can.
std::string shared_device(const std::vector<std::string>& ids) {
  for (std::size_t i = 0; i < ids.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (!ids[i].empty() && ids[i] == ids[j])
        return concat("ranks ", j, " and ", i, " are both on ", ids[i]);
  return "";
}

}  // namespace

void add_device_options(CLI::App& command, DeviceOptions& options) {
  command
      .add_option("--device", options.device,
                  "cpu, cuda, or auto: cuda where every rank has a device of its own")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->capture_default_str();
  command
      .add_option("--collectives", options.collectives,
                  "how tensors of devices travel between ranks: nccl, or staged through host "
                  "memory and MPI")
      ->check(CLI::IsMember({"nccl", "staged"}))
      ->capture_default_str();
}

std::unique_ptr<Ops> make_ops(const DeviceOptions& options, MpiEnvironment& mpi) {
  if (options.device == "cpu") return make_cpu_ops();
  const std::vector<std::string> devices = find_devices(mpi);
  const std::string shared = options.collectives == "nccl" ? shared_device(devices) : "";
  const std::string reason = !shared.empty() ? shared : without_device(devices);
  if (options.device == "auto" && !reason.empty()) {
    const bool has_any = std::any_of(devices.begin(), devices.end(),
                                     [](const std::string& id) { return !id.empty(); });
    if (has_any && mpi.world_rank() == 0)
      std::fprintf(stderr, "--device auto computes on CPUs: %s\n", reason.c_str());
    return make_cpu_ops();
  }
  if (!shared.empty())
    throw UserError(concat("--device cuda: ", shared,
                           ", and NCCL wants a device of its own for each rank. Start no more "
                           "ranks per host than nvidia-smi -L lists devices, or use --collectives "
                           "staged, which does without NCCL"));
  return make_cuda_ops(device_of(mpi));
}

DeviceGroups::DeviceGroups(const DeviceOptions& options, ProcessGrid& grid, Ops& ops)
    : grid_(grid) {
  if (ops.device() == Device::host) return;
  grid.attach_device([&](Communicator& group) {
    return options.collectives == "nccl" ? make_nccl_communicator(ops, group)
                                         : make_staged_communicator(ops, group);
  });
}

std::string describe_device(const Ops& ops, const MpiEnvironment& mpi) {
  if (ops.device() == Device::host)
    return concat("cpu: ", cpu::name_of(cpu::cpu_isa()), " kernels");
  return concat("cuda: ", describe_cuda_device(device_of(mpi)), ", one of ", num_cuda_devices());
}

}  // namespace openmoe
