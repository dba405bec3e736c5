#include "apps/device.h"

#include <span>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/cpu_ops.h"
#include "cuda/device_ops.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

bool every_rank(bool here, Communicator& world) {
  std::int64_t missing[] = {here ? 0 : 1};
  world.all_reduce_max(std::span<std::int64_t>(missing));
  return missing[0] == 0;
}

// The device of this rank. A rank that sees one device alone was given it by the scheduler.
int device_of(const MpiEnvironment& mpi) {
  return num_cuda_devices() == 1 ? 0 : mpi.node_rank();
}

}  // namespace

void add_device_options(CLI::App& command, DeviceOptions& options) {
  command
      .add_option("--device", options.device,
                  "cpu, cuda, or auto: cuda where every rank sees a device")
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
  const bool use_cuda =
      options.device == "cuda" ||
      (options.device == "auto" && every_rank(device_of(mpi) < num_cuda_devices(), mpi.world()));
  if (use_cuda) return make_cuda_ops(device_of(mpi));
  return make_cpu_ops();
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
