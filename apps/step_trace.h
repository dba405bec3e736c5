// StepTrace: what one rank does in one step, as a file that Perfetto (ui.perfetto.dev) and
// chrome://tracing show: layers and parts of the network, ops, collectives. On a device everything
// stands where the device came to it, collectives where its ops were held up by them. Costs nothing
// in other steps.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/run_observers.h"
#include "core/ops.h"
#include "parallel/process_grid.h"

namespace openmoe {

// A stretch of time in seconds.
using TimeSpan = std::pair<double, double>;

// Seconds covered by `spans`, and by `spans` outside `cover`; both may overlap themselves.
double covered_seconds(std::vector<TimeSpan> spans);
double exposed_seconds(const std::vector<TimeSpan>& spans, const std::vector<TimeSpan>& cover);

class StepTrace : private OpObserver, private CollectiveObserver {
 public:
  // Writes FOLDER/rank-00000.json; the folder is made. References must outlive this.
  StepTrace(std::int64_t step, const std::string& folder, ProcessGrid& grid, Ops& ops,
            RunObservers& observers);
  ~StepTrace() override { detach(); }
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  std::int64_t step() const { return step_; }
  void begin_step();  // Collective: the clocks of all ranks start together
  void end_step();
  // The file, and a line of what all ranks spent on the exchange of tokens. Collective. Throws
  // RuntimeFault.
  std::string write();

 private:
  enum Track { steps, layers, parts, op_calls, collectives, rows_under_way };
  struct Event {
    std::string name;
    Track track = steps;
    std::int64_t from = 0, to = 0;  // places of the clock
    std::int64_t bytes = -1;        // of a collective
    TimeSpan time{};                // once the step has ended
  };

  void begin() override { begun_.push_back(clock_->mark()); }
  void add(const char* op, double flops) override;
  void enter(const char* part) override;
  void enter_layer(std::int64_t layer, Pass pass) override;
  void begin_collective(const CollectiveCall&) override { collective_begin_ = clock_->mark(); }
  void end_collective(const CollectiveCall& call) override;

  std::vector<TimeSpan> spans_of(Track track) const;
  void close_part();
  void close_layer();
  void detach();
  std::string text(double exchange, double exposed) const;

  std::int64_t step_;
  std::string folder_;
  ProcessGrid& grid_;
  RunObservers& observers_;
  std::unique_ptr<OpClock> clock_;
  bool is_attached_ = false;
  double end_ = 0.0;
  std::string layer_;  // open at the moment; "": none
  const char* part_ = nullptr;
  std::int64_t layer_begin_ = 0, part_begin_ = 0, collective_begin_ = 0;
  std::vector<std::int64_t> begun_;  // of the ops under way
  std::vector<Event> events_;
  std::deque<std::int64_t> exchange_starts_;  // of those under way
};

}  // namespace openmoe
