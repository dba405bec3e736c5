// Trainer: the step loop. It composes the data stream, the network, the gradient reduction, the
// optimizer, the records of the run and its checkpoints.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "apps/network.h"
#include "apps/progress.h"
#include "apps/routing_monitor.h"
#include "apps/run_log.h"
#include "apps/step_agreement.h"
#include "apps/stop_signals.h"
#include "apps/training_step.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "data/batch_stream.h"
#include "parallel/process_grid.h"

namespace openmoe {

class Trainer {
 public:
  // `log` and `progress` are null on every rank but the root. All references must outlive this.
  Trainer(Network& network, ProcessGrid& grid, const Recipe& recipe, BatchStream& stream,
          const std::string& run_folder, const StopSignals& signals, RunLog* log,
          Progress* progress);

  // Peak arithmetic speed of all ranks, FLOP/s, for the percentage in the progress line; 0: not
  // measured.
  void set_peak_flops(double flops) { peak_flops_ = flops; }

  // The weights as they are, as the state before `step`: a run that begins with the weights of
  // another saves them, so that it can resume at any time. Collective.
  void save_start(std::int64_t step, std::int64_t positions);

  // Steps [first_step, recipe.run.num_steps), with validation and checkpoints as the recipe asks.
  // `first_positions` were trained on before. Collective. Throws RuntimeFault when a loss or
  // gradient norm is not finite, naming the step, unless the recipe skips such steps; nothing of it
  // is saved. When any rank is asked to stop, all save before their next step and return the
  // signal; else 0.
  int run(std::int64_t first_step, std::int64_t first_positions);

 private:
  struct StepResult {
    int stop_signal = 0;  // not trained, because of it
    BatchCounts counts;
    StepOutcome outcome;
    double seconds = 0.0;
    nlohmann::ordered_json routing;  // of RoutingMonitor; null at most steps
    double routing_seconds = 0.0;    // that this rank watched its routers
  };

  StepResult train_step(std::int64_t step);
  // Explains and dumps a step that was not finite; throws where the recipe does not skip it.
  void check_finite(std::int64_t step, const StepResult& result);
  void record(std::int64_t step, const StepResult& result);
  void validate(std::int64_t step);
  void save(std::int64_t next_step);
  void save_and_stop(std::int64_t next_step, int signal);
  std::int64_t first_row() const { return grid_.data_rank() * rows_per_rank_; }

  Network& network_;
  ProcessGrid& grid_;
  const Recipe& recipe_;
  BatchStream& stream_;
  std::string run_folder_;
  const StopSignals& signals_;
  RunLog* log_;
  Progress* progress_;
  TrainingStep training_;
  std::optional<RoutingMonitor> routing_;  // from run() on
  std::int64_t rows_per_rank_;
  std::int64_t positions_ = 0;    // trained on so far
  std::int64_t skips_ = 0;        // steps in a row whose update was left out
  std::int64_t saved_step_ = -1;  // of the newest checkpoint of this process; -1: none yet
  double peak_flops_ = 0.0;
  Batch batch_;
};

// Rows a rank computes at once under this recipe and grid.
std::int64_t micro_batch_rows(const Recipe& recipe, const ProcessGrid& grid);

}  // namespace openmoe
