// Watchdog: finds the rank that holds up a job, and ends the job with its name.
//
// A thread beside the main thread of every rank, which therefore works while that hangs in MPI and
// calls no MPI itself. Ranks send what they do to rank 0 over UDP (IPv4), one to five datagrams a
// second; rank 0 answers with what it does. Rank 0 judges all others (stuck_ranks.h); the others
// judge rank 0 by its silence alone.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/rank_activity.h"
#include "parallel/stuck_ranks.h"

namespace openmoe {

class Watchdog {
 public:
  // Collective over the world; `observers` knows the groups of this rank and `activity` what it
  // does. Both must outlive this. `name` is what this rank is called in reports. A rank that rank 0
  // cannot be reached from watches itself alone, and rank 0 says so on standard error. Throws
  // RuntimeFault.
  Watchdog(Communicator& world, const std::string& name, const CollectiveObservers& observers,
           const RankActivity& activity, const StuckLimits& limits);
  // This rank leaves: nobody is to wait for it.
  ~Watchdog();
  // Groups that were made after it. Collective over the same world.
  void learn_groups(Communicator& world);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace openmoe
