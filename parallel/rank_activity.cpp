#include "parallel/rank_activity.h"

#include <utility>

namespace openmoe {

void RankActivity::enter_phase(const char* phase, bool is_patient) {
  const std::lock_guard lock(mutex_);
  phase_ = phase;
  is_patient_ = is_patient;
  part_ = nullptr;
  layer_ = -1;
  note_change();
}

void RankActivity::enter(const char* part) {
  const std::lock_guard lock(mutex_);
  part_ = part;
  note_change();
}

void RankActivity::enter_layer(std::int64_t layer, Pass pass) {
  const std::lock_guard lock(mutex_);
  layer_ = layer;
  pass_ = pass;
}

void RankActivity::enter_step(std::int64_t step) {
  const std::lock_guard lock(mutex_);
  step_ = step;
  note_change();
}

void RankActivity::begin_collective(const CollectiveCall& call) {
  const std::lock_guard lock(mutex_);
  in_collective_ = true;
  group_ = call.group->index;
  verb_ = call.verb;
  const auto index = static_cast<std::size_t>(group_);
  if (entered_.size() <= index) entered_.resize(index + 1, 0);
  entered_[index] = call.number;
  note_change();
}

void RankActivity::end_collective(const CollectiveCall&) {
  const std::lock_guard lock(mutex_);
  in_collective_ = false;
  note_change();
}

RankState RankActivity::state() const {
  const std::lock_guard lock(mutex_);
  std::string phase = phase_;
  if (part_ != nullptr) phase += pass_ == Pass::forward ? ": forward, " : ": backward, ";
  if (part_ != nullptr && layer_ >= 0) phase += "layer " + std::to_string(layer_) + ", ";
  if (part_ != nullptr) phase += part_;
  return {.changes = changes_.load(std::memory_order_relaxed),
          .step = step_,
          .phase = std::move(phase),
          .is_patient = is_patient_,
          .in_collective = in_collective_,
          .group = group_,
          .verb = verb_,
          .entered = entered_};
}

}  // namespace openmoe
