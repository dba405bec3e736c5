// StepTrace: what one rank does in one step, as a file that Perfetto (ui.perfetto.dev) and
// chrome://tracing show: layers and parts of the network, ops, collectives. Costs nothing in other
// steps.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "apps/run_observers.h"
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
  StepTrace(std::int64_t step, const std::string& folder, ProcessGrid& grid,
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
  using Clock = std::chrono::steady_clock;
  enum Track { steps, layers, parts, op_calls, collectives, rows_under_way };
  struct Event {
    std::string name;
    Track track = steps;
    TimeSpan time;
    std::int64_t bytes = -1;  // of a collective
  };

  void add(const char* op, double seconds, double flops) override;
  void enter(const char* part) override;
  void enter_layer(std::int64_t layer, Pass pass) override;
  void begin_collective(const CollectiveCall&) override {}
  void end_collective(const CollectiveCall& call, double seconds) override;

  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  void close_part();
  void close_layer();
  void detach();
  std::string text(double exchange, double exposed) const;

  std::int64_t step_;
  std::string folder_;
  ProcessGrid& grid_;
  RunObservers& observers_;
  bool is_attached_ = false;
  Clock::time_point start_;
  double end_ = 0.0;
  std::string layer_;  // open at the moment; "": none
  const char* part_ = nullptr;
  double layer_begin_ = 0.0, part_begin_ = 0.0;
  std::vector<Event> events_;
  std::vector<TimeSpan> op_spans_, exchange_spans_;
  std::deque<double> exchange_starts_;  // of those under way
};

}  // namespace openmoe
