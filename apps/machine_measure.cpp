#include "apps/machine_measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/cpu/cpu_ops.h"
#include "core/cpu/peak.h"
#include "parallel/row_transport.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSeconds = 0.2;  // of each measurement

// Calls of work() per second, of several in about kSeconds; the first call does not count.
template <typename Work>
double calls_per_second(Work&& work) {
  work();
  const auto begin = Clock::now();
  double calls = 0.0, seconds = 0.0;
  do {
    work();
    ++calls;
    seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (seconds < kSeconds);
  return calls / seconds;
}

// FLOP/s of the products of a linear layer.
double product_flops(Ops& ops, DType type) {
  constexpr std::int64_t kRows = 512, kWidth = 1024;
  constexpr std::int64_t kBytes = 3 * kWidth * kWidth * 4;
  Arena arena(ops, kBytes);
  const auto make = [&](std::int64_t rows) {
    return arena.allocate("operand", MemoryCategory::activations, type, {rows, kWidth});
  };
  const Tensor y = make(kRows), x = make(kRows), w = make(kWidth);
  return 2.0 * static_cast<double>(kRows * kWidth * kWidth) *
         calls_per_second([&] { ops.linear_forward(y, x, w); });
}

// Bytes/s of reading one and updating another array that no cache holds.
double memory_bandwidth(Ops& ops) {
  constexpr std::int64_t kElements = 32LL << 20;
  Arena arena(ops, 2 * kElements * 4);
  const Tensor y = arena.allocate("y", MemoryCategory::activations, DType::f32, {kElements});
  const Tensor x = arena.allocate("x", MemoryCategory::activations, DType::f32, {kElements});
  return 3.0 * static_cast<double>(y.size_bytes()) *
         calls_per_second([&] { ops.add_accumulate(y, x); });
}

// Seconds of an exchange of `bytes` from each rank to every other.
double exchange_seconds(Communicator& group, std::int64_t bytes) {
  const auto ranks = static_cast<std::size_t>(group.size());
  std::vector<std::int64_t> rows(ranks, 1), offsets(ranks);
  rows[static_cast<std::size_t>(group.rank_in_group())] = 0;
  for (std::size_t r = 0; r < ranks; ++r) offsets[r] = static_cast<std::int64_t>(r);
  std::vector<char> sent(ranks * static_cast<std::size_t>(bytes)), received(sent.size());
  const auto exchange = [&] {
    group.all_to_all_rows(sent.data(), {rows, offsets}, received.data(), {rows, offsets}, bytes);
  };
  constexpr int kTimes = 20;
  exchange();
  const auto begin = Clock::now();
  for (int i = 0; i < kTimes; ++i) exchange();
  return std::chrono::duration<double>(Clock::now() - begin).count() / kTimes;
}

// Of a group of at least 2.
Link measure_link(Communicator& group) {
  constexpr std::int64_t kSmall = 8, kLarge = 4LL << 20;
  const double others = group.size() - 1;
  const double start = exchange_seconds(group, kSmall), whole = exchange_seconds(group, kLarge);
  return {static_cast<double>(kLarge) * others / std::max(whole - start, 1e-9), 1.0,
          std::max(start / std::ceil(std::log2(others + 1.0)), 1e-9)};
}

double available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  double value = 0.0;
  while (file >> key >> value) {
    if (key == "MemAvailable:") return value * 1024.0;
    std::getline(file, key);
  }
  throw RuntimeFault("/proc/meminfo has no MemAvailable");
}

// The least of each value over ranks, to one.
void take_least(Communicator& world, const std::vector<double*>& values) {
  std::vector<std::int64_t> negated;
  for (const double* value : values) negated.push_back(-std::llround(*value));
  world.all_reduce_max(std::span<std::int64_t>(negated));
  for (std::size_t i = 0; i < values.size(); ++i) *values[i] = -static_cast<double>(negated[i]);
}

}  // namespace

Machine measure_machine(MpiEnvironment& mpi) {
  Communicator& world = mpi.world();
  const std::int64_t per_node = ranks_per_host(world);
  if (per_node == 0)
    throw UserError(concat("--measure: found ", world.size(),
                           " ranks that do not lie in equal stretches on their hosts, allowed: the "
                           "same number of neighbouring ranks on every host, as of mpirun "
                           "--map-by ppr:N:node; or describe the machine with --machine"));
  const auto ops = make_cpu_ops();
  Machine machine;
  machine.name = "measured";
  machine.description = "the ranks of this job, all at work at once";
  const auto measure = [&](auto&& value) {
    world.barrier();
    return value();
  };
  machine.f32.peak = measure([&] { return cpu::measure_peak_flops(kSeconds); });
  double f32 = measure([&] { return product_flops(*ops, DType::f32); });
  machine.bf16.peak = measure([&] { return product_flops(*ops, DType::bf16); });
  machine.memory.peak = measure([&] { return memory_bandwidth(*ops); });
  // Once all ranks have given back what they measured with.
  machine.memory_bytes = measure(available_bytes) / static_cast<double>(per_node);
  take_least(world, {&machine.f32.peak, &f32, &machine.bf16.peak, &machine.memory.peak,
                     &machine.memory_bytes});
  machine.f32.fraction = std::min(1.0, f32 / machine.f32.peak);
  machine.ranks_per_node = per_node;

  // Blocks of ranks on a node, and the ranks of one place in their nodes.
  const int on_node = static_cast<int>(per_node);
  const int node = mpi.world_rank() / on_node, place = mpi.world_rank() % on_node;
  const auto inside = world.split(node, place);
  const auto across = world.split(place, node);
  // One rank never asks its links for anything; memory stands in.
  Link link{machine.memory.peak, 1.0, 1e-6};
  machine.intra_node = inside->size() > 1 ? measure_link(*inside) : link;
  machine.inter_node = across->size() > 1 ? measure_link(*across) : machine.intra_node;
  if (inside->size() == 1 && across->size() > 1) machine.intra_node = machine.inter_node;
  // Links may differ a little: all plan with those of rank 0.
  return parse_machine(world.all_gather(to_json(machine))[0], "--measure");
}

}  // namespace openmoe
