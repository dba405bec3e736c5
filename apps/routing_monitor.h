// RoutingMonitor: what the routers do while they are trained, every run.routing_every steps: for
// the row of metrics.jsonl and the event files (run_log.h), and into routing logs
// (RUN/routing/step-00000100.h5, data/routing_log.h) of the first rows of the batch, which `openmoe
// analyze --log` reads. The logs also keep the favourite experts of frequent ids, from which a
// resumed run goes on.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/network.h"
#include "core/batch.h"
#include "core/config/recipe.h"
#include "core/model/step_stats.h"
#include "core/routing/live_counts.h"
#include "data/batch_stream.h"
#include "data/routing_log.h"
#include "parallel/process_grid.h"

namespace openmoe {

class RoutingMonitor {
 public:
  // All references must outlive this. `first_step`: the one training goes on from; logs of it and
  // of later steps are removed. Throws UserError when the folder cannot be written; a damaged
  // newest log only costs the comparison with earlier steps, and a warning. Collective.
  RoutingMonitor(Network& network, ProcessGrid& grid, const BatchStream& stream,
                 const std::string& run_folder, std::int64_t first_step);

  bool wants(std::int64_t step) const;
  // Before the micro-batches of a step that it wants, with this rank's rows. Collective.
  void begin(const Batch& batch);
  // After each forward and backward, with the micro-batch and its first row in the global batch.
  void observe(const Batch& micro_batch, std::int64_t first_row);
  // After the last one: writes the log, and returns one object for each MoE layer,
  // on rank 0. `sums` and `counts` over all ranks. Collective.
  nlohmann::ordered_json finish(std::int64_t step, const StepSums& sums, const BatchCounts& counts);
  // A checkpoint is made after `steps`: later steps are compared with the favourites of now.
  void mark_checkpoint(std::int64_t steps);

 private:
  nlohmann::ordered_json layer_row(std::size_t layer, const StepSums& sums,
                                   const BatchCounts& counts, double rank_imbalance);
  // Shares of the tracked ids, seen often enough now and before, whose favourite first choice is
  // that of when they were last seen, and that of the last checkpoint; -1: none can be compared.
  struct Unchanged {
    double since_seen = -1.0, since_checkpoint = -1.0;
  };
  Unchanged unchanged_favourites(std::size_t layer);
  std::vector<double> rank_imbalance();
  void write_log(std::int64_t step);
  void open_folder(std::int64_t first_step);
  void share_favourites();

  Network& network_;
  ProcessGrid& grid_;
  const Recipe& recipe_;
  const BatchStream& stream_;
  std::string run_folder_;
  std::vector<std::int64_t> layers_;  // of the network
  std::int64_t logged_rows_;          // of the global batch, from its first
  std::optional<LiveCounts> counts_;
  FavouriteExperts tracked_;  // the same on all ranks
  // tracked_.experts of when the last checkpoint was made, and its step.
  std::vector<std::vector<std::int32_t>> at_checkpoint_;
  std::int64_t checkpoint_step_ = 0;
  std::vector<std::int64_t> received_;  // rows for this rank's experts, by layer
  std::string logged_;                  // this rank's part of the log
  std::vector<std::int32_t> choice_, slot_;
  std::vector<float> prob_;
};

}  // namespace openmoe
