#include "apps/threads.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <vector>

namespace openmoe {
namespace {

std::vector<int> cpu_mask() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> cpus;
  // Fails on hosts with more CPUs than the fixed mask holds; then the OpenMP runtime's own count
  // stands in.
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) {
    for (int cpu = 0; cpu < omp_get_num_procs(); ++cpu) cpus.push_back(cpu);
    return cpus;
  }
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  return cpus;
}

// CPUs worth of time that the container grants (cgroup v2, "quota period"), or 0 when there is no
// limit.
int container_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || period <= 0) return 0;  // "max" is no number
  return std::max(1, static_cast<int>(quota / period));
}

}  // namespace

int available_cores() {
  const std::vector<int> cpus = cpu_mask();
  std::set<std::string> cores;
  for (const int cpu : cpus) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!(file >> siblings)) siblings = "cpu " + std::to_string(cpu);
    cores.insert(siblings);
  }
  const int count = std::max(1, static_cast<int>(cores.size()));
  const int quota = container_quota();
  return quota > 0 ? std::min(count, quota) : count;
}

int set_num_threads(Communicator& world, int requested) {
  std::string identity(256, '\0');
  gethostname(identity.data(), identity.size() - 1);
  for (const int cpu : cpu_mask()) identity += " " + std::to_string(cpu);
  const std::vector<std::string> identities = world.all_gather(identity);
  const auto sharing = std::count(identities.begin(), identities.end(), identity);
  if (requested > 0)
    omp_set_num_threads(requested);
  else if (std::getenv("OMP_NUM_THREADS") == nullptr)
    omp_set_num_threads(std::max(1, available_cores() / static_cast<int>(sharing)));
  return omp_get_max_threads();
}

}  // namespace openmoe
