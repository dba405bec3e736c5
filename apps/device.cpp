#include "apps/device.h"

#include <span>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/cpu_ops.h"
#include "cuda/device_ops.h"

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

void add_device_option(CLI::App& command, std::string& device) {
  device = "auto";
  command.add_option("--device", device, "cpu, cuda, or auto: cuda where every rank sees a device")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->capture_default_str();
}

std::unique_ptr<Ops> make_ops(const std::string& device, MpiEnvironment& mpi) {
  const bool use_cuda =
      device == "cuda" || (device == "auto" && every_rank(device_of(mpi) < num_cuda_devices(), mpi.world()));
  if (use_cuda) return make_cuda_ops(device_of(mpi));
  return make_cpu_ops();
}

void attach_device(ProcessGrid& grid, Ops& ops) {
  if (ops.device() == Device::host) return;
  grid.attach_device({make_staged_communicator(ops, grid.data()), make_staged_communicator(ops, grid.expert()),
                      make_staged_communicator(ops, grid.replicas())});
}

std::string describe_device(const Ops& ops, const MpiEnvironment& mpi) {
  if (ops.device() == Device::host) return concat("cpu: ", cpu::name_of(cpu::cpu_isa()), " kernels");
  return concat("cuda: ", describe_cuda_device(device_of(mpi)), ", one of ", num_cuda_devices());
}

}  // namespace openmoe
