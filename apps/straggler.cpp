#include "apps/straggler.h"

#include <algorithm>
#include <vector>

namespace openmoe {

bool Straggler::is_notable() const {
  constexpr double kNotableShare = 1.25;
  return share() >= kNotableShare;
}

Straggler find_straggler(Communicator& world, double busy_seconds) {
  std::vector<double> busy;
  for (const std::string& text : world.all_gather(std::to_string(busy_seconds)))
    busy.push_back(std::stod(text));
  const auto slowest = std::max_element(busy.begin(), busy.end());
  Straggler found;
  found.world_rank = static_cast<int>(slowest - busy.begin());
  found.seconds = *slowest;
  std::sort(busy.begin(), busy.end());
  found.median_seconds = busy[(busy.size() - 1) / 2];
  return found;
}

}  // namespace openmoe
