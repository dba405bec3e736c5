// RehearsalWorld: one rank of a process grid that does not exist, for code that is run to learn
// what it asks of the ranks. Every verb returns at once and moves nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "parallel/communicator.h"

namespace openmoe {

struct RehearsalGrid {
  std::int64_t dp = 1, ep = 1, tp = 1;
  std::int64_t world_rank = 0;      // whose part is played
  std::int64_t ranks_per_host = 0;  // blocks of so many ranks of the world; 0: not known

  std::int64_t ranks() const { return dp * ep * tp; }
  // Of an expert group on one host, whose ranks are tp apart; 0: not known.
  std::int64_t expert_ranks_per_host() const {
    return ranks_per_host == 0 ? 0 : std::clamp<std::int64_t>(ranks_per_host / tp, 1, ep);
  }
  // As ProcessGrid's.
  std::int64_t num_data_ranks() const { return dp * ep; }
  std::int64_t dp_rank() const { return world_rank / (tp * ep); }
  std::int64_t ep_rank() const { return world_rank / tp % ep; }
  std::int64_t tp_rank() const { return world_rank % tp; }
};

// The world of a ProcessGrid of these degrees, whose splits (data, expert, replicas, tensor, in the
// order of its constructor) have the sizes that they would have.
std::unique_ptr<Communicator> make_rehearsal_world(const RehearsalGrid& grid);

}  // namespace openmoe
