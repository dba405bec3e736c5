// LossSpikes: whether a step's loss stands out from those before it, and which batches are left out
// because of that. A function of the losses alone, so that every rank finds the same, and its state
// is part of checkpoints, so that a resumed run does too.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>

#include "core/config/recipe.h"

namespace openmoe {

class LossSpikes {
 public:
  explicit LossSpikes(const RunConfig& run) : run_(run) {}

  // Before a step: losses of another phase of the recipe say nothing about this one's.
  void enter_phase(std::int64_t phase);
  // Standard deviations by which `loss` lies above the mean of the window; 0 until that is full.
  double z_score(double loss) const;
  bool is_spike(double loss) const;
  // A step was trained with this loss.
  void accept(double loss);

  // A rewind leaves out the batches that end with that of `step`.
  void leave_out_until(std::int64_t step);
  bool leaves_out(std::int64_t step) const { return left_out_.contains(step); }

  // JSON; goes back to the state of a checkpoint, but for the batches that are left out: those stay
  // besides. An empty text is the state of a run that has not begun.
  std::string state() const;
  void restore(const std::string& state);

 private:
  RunConfig run_;
  std::int64_t phase_ = -1;
  std::deque<double> window_;
  std::set<std::int64_t> left_out_;
};

}  // namespace openmoe
