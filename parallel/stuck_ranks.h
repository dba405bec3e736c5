// Which rank holds up a job: from what all ranks last said of themselves to the one, or the few,
// that the others wait for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/rank_activity.h"

namespace openmoe {

// A group as every rank knows it: RankState::group of rank r is groups_of_rank[r][group] here.
struct JobGroups {
  struct Group {
    std::string name;
    std::vector<int> world_ranks;
  };
  std::vector<Group> groups;
  std::vector<std::vector<int>> groups_of_rank;  // by world rank, then by the rank's own index

  // The group of `rank`'s own index; -1 where it is not known here.
  int find(int rank, int own_index) const;
};

// What is known of one rank. Times are in seconds.
struct RankSign {
  bool has_left = false;  // it said so, and expects no call of others any more
  bool was_heard = true;  // ever; false: nothing is known but its silence
  double silence = 0.0;   // since it was last heard of
  double idle = 0.0;      // since its state last changed
  RankState state;
};

struct StuckLimits {
  double silence = 20.0;  // of a process: stopped, killed, or its host is gone
  double idle = 600.0;    // of the main thread; ten times that in a patient phase
};

// One sentence or more that name the ranks at fault with their last collective; empty when none is.
// A rank that was never heard may do well behind its firewall: it is at fault only where another
// stands still and none of those that were heard explains that.
// `names` are what ranks are called, by rank.
std::string describe_stuck(const std::vector<RankSign>& signs, const JobGroups& groups,
                           const std::vector<std::string>& names, const StuckLimits& limits);

// "rank 3", "ranks 0, 1, 2"; of many the first, and how many they are.
std::string list_ranks(const std::vector<int>& ranks);

}  // namespace openmoe
