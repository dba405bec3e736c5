#include "apps/op_costs.h"

#include <algorithm>

#include "apps/plan_step.h"
#include "apps/training_step.h"

namespace openmoe {
namespace {

class CostListener final : public StepListener {
 public:
  explicit CostListener(const Peaks& peaks) : peaks_(peaks) {}

  const std::map<std::string, OpCost>& costs() const { return costs_; }

  void on_repeat(std::int64_t times) override { times_ = times; }
  void on_work(const OpWork& work) override {
    const double flop_seconds = work.flops / peaks_.products(work.operands);
    under_way_.flops += work.flops;
    under_way_.bytes += work.bytes;
    under_way_.flop_seconds += flop_seconds;
    // An op may tell of its tensors one by one; arithmetic comes with all of its bytes.
    under_way_.roofline_seconds += std::max(flop_seconds, work.bytes / peaks_.memory);
  }
  void add(const char* op, double) override {
    OpCost& cost = costs_[op];
    const auto times = static_cast<double>(times_);
    cost.calls += times_;
    cost.flops += times * under_way_.flops;
    cost.bytes += times * under_way_.bytes;
    cost.flop_seconds += times * under_way_.flop_seconds;
    cost.roofline_seconds += times * under_way_.roofline_seconds;
    under_way_ = {};
  }
  void enter(const char*) override {}
  void begin_collective(const CollectiveCall&) override {}
  void end_collective(const CollectiveCall&) override {}

 private:
  Peaks peaks_;
  std::map<std::string, OpCost> costs_;
  OpCost under_way_;
  std::int64_t times_ = 1;
};

}  // namespace

std::map<std::string, OpCost> planned_costs(const Recipe& recipe, const RehearsalGrid& grid,
                                            const Peaks& peaks) {
  CostListener listener(peaks);
  const std::int64_t rows = micro_batch_rows(recipe, grid.num_data_ranks());
  rehearse_step(recipe, grid, balanced_rows(recipe, grid, rows), listener);
  return listener.costs();
}

}  // namespace openmoe
