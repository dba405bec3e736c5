#include "apps/straggler.h"

#include <algorithm>
#include <string>

namespace openmoe {

void WaitClock::begin_collective(const CollectiveCall&) {
  if (counts_) begin_ = clock_->mark();
}

void WaitClock::end_collective(const CollectiveCall&) {
  if (!counts_) return;
  calls_.emplace_back(begin_, clock_->mark());
}

void WaitClock::end_counting() {
  counts_ = false;
  if (calls_.size() >= kMostUntimedCalls) collect();
}

void WaitClock::collect() {
  for (const auto& [from, to] : calls_) seconds_ += clock_->seconds(from, to);
  calls_.clear();
  clock_->forget();
}

double WaitClock::take_seconds() {
  collect();
  return std::exchange(seconds_, 0.0);
}

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
