// CollectiveObserver: told of every collective call that a rank makes through an observed
// communicator (parallel/observed_communicator.h). The watchdog, traces, and the counts of time and
// bytes are such observers. All of it is of the main thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string_view>
#include <utility>
#include <vector>

namespace openmoe {

struct CollectiveGroup {
  const char* name = "group";    // a literal
  int index = 0;                 // in the order in which this rank joined its groups
  std::vector<int> world_ranks;  // in group order
  std::int64_t num_calls = 0;    // entered by this rank so far
};

struct CollectiveCall {
  const CollectiveGroup* group = nullptr;
  const char* verb = "";    // a literal
  std::int64_t number = 0;  // among the calls of the group, from 1: the same on all of its ranks
  std::int64_t bytes = 0;   // that this rank brings

  // Of a collective in the background: it goes on from here, or it is waited for.
  bool starts() const { return std::string_view(verb).starts_with("start of "); }
  bool waits() const { return std::string_view(verb).starts_with("wait for "); }
  bool is_all_to_all() const {
    return std::string_view(verb).find("all_to_all") != std::string_view::npos;
  }
};

class CollectiveObserver {
 public:
  virtual ~CollectiveObserver() = default;
  virtual void begin_collective(const CollectiveCall& call) = 0;
  virtual void end_collective(const CollectiveCall& call) = 0;
};

// The groups of one rank and who is told of their calls.
class CollectiveObservers {
 public:
  CollectiveObservers() = default;
  CollectiveObservers(const CollectiveObservers&) = delete;
  CollectiveObservers& operator=(const CollectiveObservers&) = delete;

  // `observer` must outlive its use.
  void add(CollectiveObserver& observer) { observers_.push_back(&observer); }
  void remove(CollectiveObserver& observer) {
    observers_.erase(std::remove(observers_.begin(), observers_.end(), &observer),
                     observers_.end());
  }

  CollectiveGroup& join(std::vector<int> world_ranks) {
    return groups_.emplace_back(
        CollectiveGroup{"group", static_cast<int>(groups_.size()), std::move(world_ranks), 0});
  }
  const std::deque<CollectiveGroup>& groups() const { return groups_; }

  void begin(const CollectiveCall& call) {
    for (CollectiveObserver* observer : observers_) observer->begin_collective(call);
  }
  void end(const CollectiveCall& call) {
    for (CollectiveObserver* observer : observers_) observer->end_collective(call);
  }

 private:
  std::deque<CollectiveGroup> groups_;  // addresses stay
  std::vector<CollectiveObserver*> observers_;
};

}  // namespace openmoe
