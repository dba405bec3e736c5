// RankActivity: what the main thread of a rank is doing, for a thread beside it to read at any
// time.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "core/op_observer.h"
#include "parallel/collective_observer.h"

namespace openmoe {

// At one moment.
struct RankState {
  std::uint64_t changes = 0;  // a number that grows with everything the rank does
  std::int64_t step = -1;     // -1: before the first
  std::string phase;          // "training: backward, layer 3, experts"
  bool is_patient = false;    // of the phase: one that may be silent for long
  bool in_collective = false;
  int group = -1;                     // of the last collective, CollectiveGroup::index; -1: none
  std::string verb;                   // of the last collective
  std::vector<std::int64_t> entered;  // calls entered so far, by group
};

class RankActivity : public CollectiveObserver, public OpObserver {
 public:
  // A literal. A patient phase reads or writes much without a sign of progress (checkpoints).
  void enter_phase(const char* phase, bool is_patient = false);
  void enter_step(std::int64_t step);

  void begin_collective(const CollectiveCall& call) override;
  void end_collective(const CollectiveCall& call) override;
  void add(const char*, double) override { note_change(); }
  void enter(const char* part) override;
  void enter_layer(std::int64_t layer, Pass pass) override;

  RankState state() const;

 private:
  void note_change() { changes_.fetch_add(1, std::memory_order_relaxed); }

  std::atomic<std::uint64_t> changes_{0};
  mutable std::mutex mutex_;  // of all below
  std::int64_t step_ = -1;
  const char* phase_ = "starting";
  bool is_patient_ = false;
  const char* part_ = nullptr;  // of the network, within the phase; null: none
  std::int64_t layer_ = -1;
  Pass pass_ = Pass::forward;
  bool in_collective_ = false;
  int group_ = -1;
  const char* verb_ = "";
  std::vector<std::int64_t> entered_;
};

}  // namespace openmoe
