// Trainer: the step loop. It composes the data stream, the network, the gradient reduction, the
// optimizer, the records of the run and its checkpoints.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "apps/background_save.h"
#include "apps/loss_spikes.h"
#include "apps/network.h"
#include "apps/progress.h"
#include "apps/routing_monitor.h"
#include "apps/run_log.h"
#include "apps/run_observers.h"
#include "apps/step_agreement.h"
#include "apps/step_trace.h"
#include "apps/stop_signals.h"
#include "apps/straggler.h"
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
          const std::string& run_folder, const StopSignals& signals, RunObservers& observers,
          RunLog* log, Progress* progress);

  ~Trainer() { observers_.collectives.remove(waiting_); }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Peak arithmetic speed of all ranks, FLOP/s, for the percentage in the progress line; 0: not
  // measured.
  void set_peak_flops(double flops) { peak_flops_ = flops; }

  // Writes a trace of one step to a folder, see step_trace.h.
  void trace_step(std::int64_t step, const std::string& folder);

  // What a checkpoint kept of the trainer beside its weights; before run().
  void restore(const std::string& state) { spikes_.restore(state); }

  // The weights as they are, as the state before `step`: a run that begins with the weights of
  // another saves them, so that it can resume at any time. Collective.
  void save_start(std::int64_t step, std::int64_t positions);

  // Steps [first_step, recipe.run.num_steps), with validation and checkpoints as the recipe asks.
  // `first_positions` were trained on before. Collective. Throws RuntimeFault when a loss or
  // gradient norm is not finite, naming the step, unless the recipe skips such steps; nothing of it
  // is saved; or when spikes of the loss do not end, or ranks differ that should not. When any rank
  // is asked to stop, all save before their next step and return the signal; else 0.
  int run(std::int64_t first_step, std::int64_t first_positions);

 private:
  struct StepResult {
    int stop_signal = 0;  // not trained, because of it
    BatchCounts counts;
    StepOutcome outcome;
    double seconds = 0.0;
    double spike_z = 0.0;                // of a step that was not accepted
    std::optional<Straggler> straggler;  // of the steps since the last report
    nlohmann::ordered_json routing;      // of RoutingMonitor; null at most steps
    double routing_seconds = 0.0;        // that this rank watched its routers
  };

  StepResult train_step(std::int64_t step);
  // Explains and dumps a step that was not finite; throws where the recipe does not skip it.
  void check_finite(std::int64_t step, const StepResult& result);
  void skip_spike(std::int64_t step, const StepResult& result);
  std::string newest_checkpoint();  // "": none
  // Back to the newest checkpoint; returns its step.
  std::int64_t rewind(std::int64_t step, const StepResult& result);
  std::string describe_spike(std::int64_t step, const StepResult& result) const;
  void report_straggler(std::int64_t step, StepResult& result);
  void record_left_out(std::int64_t step);
  // After `steps_done` steps: comparison of ranks, validation, checkpoint.
  void finish_step(std::int64_t steps_done);
  void record(std::int64_t step, const StepResult& result);
  void validate(std::int64_t step);
  // Complete when it returns, or with run.checkpoint_in_background when complete_save() does.
  void save(std::int64_t next_step);
  void complete_save();           // waits for the checkpoint that is being written, if any
  void complete_save_if_ready();  // without waiting
  void announce_save(const std::string& folder);
  // All ranks end the run here, all for this reason.
  [[noreturn]] void fail(const std::string& reason);
  void save_and_stop(std::int64_t next_step, int signal);
  bool watches_stragglers() const {
    return recipe_.run.straggler_every > 0 && grid_.world().size() > 1;
  }
  std::int64_t first_row() const { return grid_.data_rank() * rows_per_rank_; }

  Network& network_;
  ProcessGrid& grid_;
  const Recipe& recipe_;
  BatchStream& stream_;
  std::string run_folder_;
  const StopSignals& signals_;
  RunObservers& observers_;
  RunLog* log_;
  Progress* progress_;
  TrainingStep training_;
  std::optional<RoutingMonitor> routing_;  // from run() on
  std::int64_t rows_per_rank_;
  std::int64_t positions_ = 0;  // trained on so far
  std::int64_t skips_ = 0;      // steps in a row whose update was left out
  std::int64_t rewinds_ = 0;    // to the newest checkpoint
  LossSpikes spikes_;
  WaitClock waiting_;
  double train_seconds_ = 0.0;  // of steps since the last report of the slowest rank
  std::optional<StepTrace> trace_;
  bool was_traced_ = false;
  std::int64_t saved_step_ = -1;  // of the newest checkpoint of this process; -1: none yet
  BackgroundSave background_;
  double peak_flops_ = 0.0;
  Batch batch_;
};

}  // namespace openmoe
