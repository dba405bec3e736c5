// The rank that computes longest: what others wait for in every collective.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/op_clock.h"
#include "parallel/collective_observer.h"
#include "parallel/communicator.h"

namespace openmoe {

// Seconds that the ops of this rank were held up by collectives, which wait and move data.
class WaitClock : public CollectiveObserver {
 public:
  // By `clock`, which is this one's alone.
  explicit WaitClock(std::unique_ptr<OpClock> clock) : clock_(std::move(clock)) {}

  // Collectives outside a time that counts are left out. Not counting at first.
  void begin_counting() { counts_ = true; }
  void end_counting();
  // Since the last call; waits for the ops so far.
  double take_seconds();

  void begin_collective(const CollectiveCall&) override;
  void end_collective(const CollectiveCall&) override;

 private:
  void collect();

  std::unique_ptr<OpClock> clock_;
  bool counts_ = false;
  std::int64_t begin_ = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> calls_;  // places, not in seconds_ yet
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
