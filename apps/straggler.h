// The rank that computes longest: what others wait for in every collective.
#pragma once

#include <vector>

#include "parallel/collective_observer.h"
#include "parallel/communicator.h"

namespace openmoe {

// Seconds that this rank spent in collectives, waiting and moving data.
class WaitClock : public CollectiveObserver {
 public:
  void begin_collective(const CollectiveCall&) override {}
  void end_collective(const CollectiveCall&, double seconds) override { seconds_ += seconds; }
  double seconds() const { return seconds_; }

 private:
  double seconds_ = 0.0;
};

struct Straggler {
  int world_rank = 0;
  double seconds = 0.0;         // that it was busy
  double median_seconds = 0.0;  // of all ranks; of an even number the lower one
  double share() const { return median_seconds > 0.0 ? seconds / median_seconds : 1.0; }
  // Worth a line of its own.
  bool is_notable() const;
};

// Of the seconds that each rank was busy, by rank; at least one.
Straggler slowest_of(const std::vector<double>& busy_seconds);

// From the seconds that every rank was busy: outside collectives. The same on every rank.
// Collective.
Straggler find_straggler(Communicator& world, double busy_seconds);

}  // namespace openmoe
