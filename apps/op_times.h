// How long each kind of op takes by its backend's clock, and how long it must take at least.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "apps/device_peaks.h"
#include "core/config/recipe.h"
#include "core/op_clock.h"
#include "core/op_observer.h"
#include "parallel/rehearsal_world.h"

namespace openmoe {

class OpTimes : public OpObserver {
 public:
  struct Time {
    std::int64_t calls = 0;
    double seconds = 0.0;
  };

  // `clock` must outlive this, and is its own.
  explicit OpTimes(OpClock& clock) : clock_(clock) {}

  void begin() override { begun_.push_back(clock_.mark()); }
  void add(const char* op, double, double) override;
  void enter(const char*) override {}

  // Waits for the ops so far and adds their times to those of earlier calls.
  void collect();
  const std::map<std::string, Time>& times() const { return times_; }

 private:
  struct Span {
    const char* op;
    std::int64_t from, to;
  };

  OpClock& clock_;
  std::vector<std::int64_t> begun_;  // places of the ops that are under way
  std::vector<Span> spans_;
  std::map<std::string, Time> times_;
};

// What the ops of one kind do in a step.
struct OpCost {
  std::int64_t calls = 0;
  double flops = 0.0;
  double bytes = 0.0;             // of the tensors read and written, each once a call
  double flop_seconds = 0.0;      // at the peak of their operands
  double roofline_seconds = 0.0;  // per call the longer of flops / peak and bytes / peak
};

// By op, of a step of `grid.world_rank` in which every expert is chosen equally often; from a
// rehearsal (plan_step.h), which needs no device.
std::map<std::string, OpCost> planned_costs(const Recipe& recipe, const RehearsalGrid& grid,
                                            const Peaks& peaks);

}  // namespace openmoe
