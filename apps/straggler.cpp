#include "apps/straggler.h"

#include <algorithm>
#include <string>

namespace openmoe {

bool Straggler::is_notable() const {
  constexpr double kNotableShare = 1.25;
  return share() >= kNotableShare;
}

Straggler slowest_of(const std::vector<double>& busy_seconds) {
  const auto slowest = std::max_element(busy_seconds.begin(), busy_seconds.end());
  Straggler found;
  found.world_rank = static_cast<int>(slowest - busy_seconds.begin());
  found.seconds = *slowest;
  std::vector<double> sorted = busy_seconds;
  std::sort(sorted.begin(), sorted.end());
  found.median_seconds = sorted[(sorted.size() - 1) / 2];
  return found;
}

Straggler find_straggler(Communicator& world, double busy_seconds) {
  std::vector<double> busy;
  for (const std::string& text : world.all_gather(std::to_string(busy_seconds)))
    busy.push_back(std::stod(text));
  return slowest_of(busy);
}

}  // namespace openmoe
