// What a command computes on: --device cpu, cuda or auto.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "core/ops.h"
#include "parallel/mpi_environment.h"
#include "parallel/process_grid.h"

namespace openmoe {

struct DeviceOptions {
  std::string device = "auto";       // cpu, cuda or auto
  std::string collectives = "nccl";  // nccl or staged: how tensors of devices travel between ranks
};

// --device and --collectives, spelled alike in every subcommand that computes.
void add_device_options(CLI::App& command, DeviceOptions& options);

// "cpu", "cuda", or "auto": CUDA where every rank has a device of its own (with staged collectives
// ranks may share one). On a host with several devices each rank takes the one of its number on the
// host. Where some rank has a device and "auto" does not take it, it says why on stderr. Throws
// UserError when cuda was asked for and cannot be had. Collective over the world.
std::unique_ptr<Ops> make_ops(const DeviceOptions& options, MpiEnvironment& mpi);

// While it lives, `grid` has communicators for tensors of `ops`; for the CPU nothing is needed.
// Collective over the world. Both must outlive it.
class DeviceGroups {
 public:
  DeviceGroups(const DeviceOptions& options, ProcessGrid& grid, Ops& ops);
  ~DeviceGroups() { grid_.detach_device(); }
  DeviceGroups(const DeviceGroups&) = delete;
  DeviceGroups& operator=(const DeviceGroups&) = delete;

 private:
  ProcessGrid& grid_;
};

// "cuda: NVIDIA H100 ..., one of 8", for the start-up log; "cpu: avx512 kernels".
std::string describe_device(const Ops& ops, const MpiEnvironment& mpi);

}  // namespace openmoe
