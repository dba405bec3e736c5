#include "apps/trainer.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/dumped_step.h"
#include "apps/held_out.h"
#include "apps/host_params.h"
#include "apps/replica_check.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "core/train/adafactor.h"
#include "data/tokenizer.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

// Largest expert load over the mean load, worst layer; 1 is perfect balance.
double max_load(const StepSums& sums) {
  double worst = 0.0;
  for (const MoeLayerSums& layer : sums.moe) {
    double total = 0.0, largest = 0.0;
    for (const double load : layer.chosen) {
      total += load;
      largest = std::max(largest, load);
    }
    if (total > 0.0)
      worst = std::max(worst, largest * static_cast<double>(layer.chosen.size()) / total);
  }
  return worst;
}

// Whether the recipe asks for a checkpoint after `steps` steps, but for the last one.
bool saves_after(const RunConfig& run, std::int64_t steps) {
  if (run.checkpoint_every > 0 && steps % run.checkpoint_every == 0) return true;
  const bool early = run.checkpoint_every == 0 || steps < run.checkpoint_every;
  return run.early_checkpoints && early && std::has_single_bit(static_cast<std::uint64_t>(steps));
}

nlohmann::ordered_json moe_rows(const StepSums& sums, const ModelConfig& model) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::size_t index = 0;
  for (std::int64_t layer = 0; layer < model.num_layers; ++layer) {
    if (!model.is_moe_layer(layer)) continue;
    const MoeLayerSums& moe = sums.moe[index++];
    rows.push_back({{"layer", layer},
                    {"expert_load", moe.chosen},
                    {"expert_kept", moe.kept},
                    {"dropped_first", moe.dropped_first},
                    {"dropped_second", moe.dropped_second}});
  }
  return rows;
}

}  // namespace

Trainer::Trainer(Network& network, ProcessGrid& grid, const Recipe& recipe, BatchStream& stream,
                 const std::string& run_folder, const StopSignals& signals, RunObservers& observers,
                 RunLog* log, Progress* progress)
    : network_(network),
      grid_(grid),
      recipe_(recipe),
      stream_(stream),
      run_folder_(run_folder),
      signals_(signals),
      observers_(observers),
      log_(log),
      progress_(progress),
      training_(network, grid, recipe),
      rows_per_rank_(recipe.data.batch_rows / grid.num_data_ranks()),
      spikes_(recipe.run),
      waiting_(network.ops().make_clock()),
      background_(network.snapshot(), grid) {
  if (watches_stragglers()) observers.collectives.add(waiting_);
}

void Trainer::trace_step(std::int64_t step, const std::string& folder) {
  trace_.emplace(step, folder, grid_, network_.ops(), observers_);
}

int Trainer::run(std::int64_t first_step, std::int64_t first_positions) {
  positions_ = first_positions;
  routing_.emplace(network_, grid_, stream_, run_folder_, first_step);
  const RunConfig& run = recipe_.run;
  if (first_step == 0 && run.early_checkpoints) save(0);
  if (run.on_spike == OnSpike::rewind && newest_checkpoint().empty()) save(first_step);
  for (std::int64_t step = first_step; step < run.num_steps;) {
    complete_save_if_ready();
    if (spikes_.leaves_out(step)) {
      record_left_out(step);
      finish_step(++step);
      continue;
    }
    const StepResult result = train_step(step);
    if (result.stop_signal != 0) {
      save_and_stop(step, result.stop_signal);
      return result.stop_signal;
    }
    check_finite(step, result);
    if (!result.outcome.was_accepted && run.on_spike == OnSpike::rewind) {
      step = rewind(step, result);
      continue;
    }
    skip_spike(step, result);
    positions_ += std::llround(result.counts.positions);
    record(step, result);
    finish_step(++step);
  }
  complete_save();
  if (progress_ != nullptr) progress_->finish();
  return 0;
}

void Trainer::finish_step(std::int64_t steps_done) {
  const RunConfig& run = recipe_.run;
  const bool last = steps_done == run.num_steps;
  if (run.replica_check_every > 0 && grid_.world().size() > 1 &&
      (last || steps_done % run.replica_check_every == 0)) {
    observers_.activity.enter_phase("comparing replicas");
    HostParams host(network_.params(), network_.ops());
    host.download();
    host.download_operands();
    const std::string difference = compare_replicas(host.table(), grid_, steps_done);
    if (!difference.empty()) fail(difference);
  }
  if (run.validate_every > 0 && (steps_done % run.validate_every == 0 || last))
    validate(steps_done - 1);
  if (last || saves_after(run, steps_done)) save(steps_done);
}

Trainer::StepResult Trainer::train_step(std::int64_t step) {
  const auto begin = Clock::now();
  waiting_.begin_counting();
  StepResult result;
  spikes_.enter_phase(phase_at(recipe_, step));
  observers_.activity.enter_step(step);
  observers_.activity.enter_phase("reading the batch");
  const bool traced = trace_ && trace_->step() == step;
  if (traced) trace_->begin_step();
  stream_.read(step, first_row(), first_row() + rows_per_rank_, batch_);
  if (step + 1 < recipe_.run.num_steps)
    stream_.prefetch(step + 1, first_row(), first_row() + rows_per_rank_);
  const StepAgreement agreed = agree_on_step(batch_, recipe_, grid_, signals_.caught());
  observers_.activity.enter_phase("training");
  result.stop_signal = agreed.stop_signal;
  if (result.stop_signal != 0) return result;
  result.counts = agreed.counts;
  const bool watched = routing_->wants(step);
  const auto timed = [&](auto&& watch) {
    const auto start = Clock::now();
    watch();
    result.routing_seconds += std::chrono::duration<double>(Clock::now() - start).count();
  };
  if (watched) timed([&] { routing_->begin(batch_); });
  const auto observe = [&](const Batch& micro_batch, std::int64_t row) {
    timed([&] { routing_->observe(micro_batch, first_row() + row); });
  };
  training_.accept_losses([&](const StepLosses& losses) {
    if (spikes_.is_spike(losses.total)) result.spike_z = spikes_.z_score(losses.total);
    return !spikes_.is_spike(losses.total);
  });
  result.outcome = training_.run(batch_, result.counts, step,
                                 watched ? TrainingStep::Observer(observe) : nullptr);
  if (traced) trace_->end_step();
  if (watched)
    timed([&] { result.routing = routing_->finish(step, result.outcome.sums, result.counts); });
  result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  waiting_.end_counting();
  train_seconds_ += result.seconds;
  report_straggler(step, result);
  if (traced) {
    const std::string summary = trace_->write();
    was_traced_ = true;
    if (progress_ != nullptr) progress_->say(summary);
  }
  return result;
}

void Trainer::report_straggler(std::int64_t step, StepResult& result) {
  const std::int64_t every = recipe_.run.straggler_every;
  if (!watches_stragglers() || (step + 1) % every != 0) return;
  const auto begin = Clock::now();
  const double waited = waiting_.take_seconds();  // and waits for what a device still does
  const std::chrono::duration<double> rest = Clock::now() - begin;
  const double busy = std::exchange(train_seconds_, 0.0) + rest.count() - waited;
  result.straggler = find_straggler(grid_.world(), busy);
  if (progress_ == nullptr || !result.straggler->is_notable()) return;
  char times[80];
  std::snprintf(times, sizeof times, "%.2f s in the last %lld steps, %.0f%% of the median",
                result.straggler->seconds, static_cast<long long>(every),
                100.0 * result.straggler->share());
  progress_->say(concat("warning: rank ", result.straggler->world_rank,
                        " computes longest: ", times, "; the others wait for it"));
}

void Trainer::check_finite(std::int64_t step, const StepResult& result) {
  if (result.outcome.is_finite()) {
    if (result.outcome.was_accepted) {
      skips_ = 0;
      spikes_.accept(result.outcome.losses.total);
    }
    return;
  }
  const std::string where = training_.describe_non_finite();
  std::string rows;
  on_root(grid_.world(), [&] { rows = dump_step(stream_, step, run_folder_); });
  grid_.world().broadcast(rows, 0);
  const std::string what = concat("step ", step, ": loss ", result.outcome.losses.total,
                                  ", gradient norm ", result.outcome.grad_norm, "; ", where);
  const bool skips = recipe_.run.on_nonfinite == OnNonFinite::skip;
  if (skips && ++skips_ <= recipe_.run.max_skips) {
    if (progress_ != nullptr)
      progress_->say(concat("warning: ", what, ". The update was left out, ", skips_,
                            " of at most ", recipe_.run.max_skips,
                            " in a row; rows of the step: ", rows));
    return;
  }
  fail(concat(
      what,
      recipe_.parallel.update_in_backward ? "; nothing of the step was saved."
                                          : "; the update was not applied and nothing was saved.",
      skips ? concat(" run.max_skips = ", recipe_.run.max_skips, " steps before were skipped.")
            : "",
      " Rows of the step: ", rows, ", as text: openmoe data show ", run_folder_,
      "/recipe.json --data DIR --step ", step, ". Earlier checkpoints in ", run_folder_,
      " are intact: resume with a lower optimizer.peak_learning_rate or higher loss.*_z_weight",
      skips ? "" : ", or with run.on_nonfinite=skip if only few steps are like this"));
}

std::string Trainer::describe_spike(std::int64_t step, const StepResult& result) const {
  char text[120];
  std::snprintf(text, sizeof text, "step %lld: loss %.4f is %.1f standard deviations above the ",
                static_cast<long long>(step), result.outcome.losses.total, result.spike_z);
  return concat(text, "mean of the last ", recipe_.run.spike_window,
                " steps (its rows: openmoe data show ", run_folder_,
                "/recipe.json --data DIR --step ", step, ")");
}

void Trainer::skip_spike(std::int64_t step, const StepResult& result) {
  if (result.outcome.was_accepted) return;
  const std::string what = describe_spike(step, result);
  if (++skips_ > recipe_.run.max_skips)
    fail(concat(what, "; run.max_skips = ", recipe_.run.max_skips,
                " steps before were skipped. This is no spike: resume with a lower "
                "optimizer.peak_learning_rate or a higher run.spike_z"));
  if (progress_ != nullptr)
    progress_->say(concat("warning: ", what, ". The update was left out, ", skips_, " of at most ",
                          recipe_.run.max_skips, " in a row"));
}

std::string Trainer::newest_checkpoint() {
  std::string folder;
  on_root(grid_.world(), [&] { folder = latest_checkpoint(run_folder_); });
  grid_.world().broadcast(folder, 0);
  return folder;
}

std::int64_t Trainer::rewind(std::int64_t step, const StepResult& result) {
  const std::string what = describe_spike(step, result);
  if (++rewinds_ > recipe_.run.max_skips)
    fail(concat(what, "; after ", recipe_.run.max_skips,
                " rewinds to one checkpoint (run.max_skips): resume with a lower "
                "optimizer.peak_learning_rate or a higher run.spike_z"));
  observers_.activity.enter_phase("going back to a checkpoint", /*is_patient=*/true);
  complete_save();
  const std::string folder = newest_checkpoint();
  const bool is_import = read_checkpoint_meta(folder).data_fingerprint == kImportedWeights;
  HostParams host(network_.params(), network_.ops());
  const CheckpointMeta meta = load_checkpoint(folder, host.table(), grid_, !is_import);
  host.upload(grid_);
  spikes_.leave_out_until(step);
  spikes_.restore(meta.trainer_state);
  positions_ = meta.positions;
  saved_step_ = meta.step;
  skips_ = 0;
  if (log_ != nullptr) log_->go_back(meta.step);
  routing_.emplace(network_, grid_, stream_, run_folder_, meta.step);
  if (progress_ != nullptr)
    progress_->say(concat("warning: ", what, ". Back to ", folder, "; ",
                          std::min(step + 1, recipe_.run.spike_batches),
                          " batches up to that step are left out"));
  return meta.step;
}

void Trainer::record_left_out(std::int64_t step) {
  if (trace_ && trace_->step() == step && progress_ != nullptr)
    progress_->say(concat("warning: step ", step, ", which --trace asks for, is left out; ",
                          was_traced_ ? "its trace is of the time before the run went back"
                                      : "there is no trace of it"));
  if (log_ != nullptr) log_->write_step({{"step", step}, {"skipped", true}, {"left_out", true}});
}

void Trainer::record(std::int64_t step, const StepResult& result) {
  if (log_ == nullptr) return;
  const StepLosses& losses = result.outcome.losses;
  const double tokens_per_s = result.counts.positions / result.seconds;
  const double learning_rate = learning_rate_at(recipe_.optimizer, step);
  double dropped_first = 0.0, dropped_second = 0.0;
  for (const MoeLayerSums& layer : result.outcome.sums.moe) {
    dropped_first += layer.dropped_first;
    dropped_second += layer.dropped_second;
  }
  const bool skipped = !result.outcome.is_finite() || !result.outcome.was_accepted;
  if (skipped || result.straggler || step % recipe_.run.log_every == 0 ||
      step + 1 == recipe_.run.num_steps || !result.routing.is_null()) {
    nlohmann::ordered_json row = {{"step", step},
                                  {"loss", losses.total},
                                  {"cross_entropy", losses.cross_entropy},
                                  {"logits_z_loss", losses.logits_z},
                                  {"load_balance_loss", losses.load_balance},
                                  {"router_z_loss", losses.router_z},
                                  {"accuracy", losses.accuracy},
                                  {"grad_norm", result.outcome.grad_norm},
                                  {"learning_rate", learning_rate},
                                  {"positions", std::llround(result.counts.positions)},
                                  {"real_tokens", std::llround(result.counts.real_tokens)},
                                  {"loss_tokens", std::llround(result.counts.loss_tokens)},
                                  {"tokens_per_s", tokens_per_s},
                                  {"step_seconds", result.seconds},
                                  {"dropped_first", std::llround(dropped_first)},
                                  {"dropped_second", std::llround(dropped_second)},
                                  {"phase", phase_at(recipe_, step)},
                                  {"moe", moe_rows(result.outcome.sums, recipe_.model)}};
    if (!result.routing.is_null()) {
      row["routing_seconds"] = result.routing_seconds;
      row["routing"] = result.routing;
    }
    if (skipped) row["skipped"] = true;
    if (!result.outcome.was_accepted) row["spike_z"] = result.spike_z;
    if (result.straggler) {
      row["slowest_rank"] = result.straggler->world_rank;
      row["slowest_rank_share"] = result.straggler->share();
    }
    log_->write_step(row);
  }
  const double flops = flops_per_token(recipe_) * tokens_per_s;
  progress_->show({.step = step,
                   .loss = losses.total,
                   .load_balance_loss = losses.load_balance,
                   .grad_norm = result.outcome.grad_norm,
                   .learning_rate = learning_rate,
                   .tokens_per_s = tokens_per_s,
                   .percent_of_peak = peak_flops_ > 0.0 ? 100.0 * flops / peak_flops_ : 0.0,
                   .max_load = max_load(result.outcome.sums)});
}

// Held-out loss and token accuracy of each source (the paper's Figure 1).
void Trainer::validate(std::int64_t step) {
  observers_.activity.enter_phase("validation");
  std::string summary = concat("validation after step ", step + 1, ":");
  for (const std::string& source : stream_.validation_sources(step)) {
    const HeldOutResult result =
        evaluate_held_out(network_, grid_, stream_, step, source, recipe_.run.validation_rows);
    if (log_ == nullptr) continue;
    log_->write_validation({{"step", step},
                            {"source", source},
                            {"cross_entropy", result.losses.cross_entropy},
                            {"accuracy", result.losses.accuracy},
                            {"loss_tokens", std::llround(result.counts.loss_tokens)}});
    char line[128];
    std::snprintf(line, sizeof line, "\n  %-20s loss %.4f  accuracy %.4f", source.c_str(),
                  result.losses.cross_entropy, result.losses.accuracy);
    summary += line;
  }
  if (progress_ != nullptr) progress_->say(summary);
}

void Trainer::save_start(std::int64_t step, std::int64_t positions) {
  positions_ = positions;
  save(step);
}

void Trainer::save(std::int64_t next_step) {
  if (next_step == saved_step_) return;
  if (routing_) routing_->mark_checkpoint(next_step);  // none before the first step
  complete_save();
  observers_.activity.enter_phase("saving a checkpoint", /*is_patient=*/true);
  CheckpointMeta meta;
  meta.step = next_step;
  meta.positions = positions_;
  meta.recipe_json = to_json(recipe_);
  meta.data_fingerprint = stream_.fingerprint();
  meta.tokenizer_sha256 = stream_.tokenizer().hash();
  if (recipe_.run.on_spike != OnSpike::ignore) meta.trainer_state = spikes_.state();
  const std::string folder = checkpoint_folder(run_folder_, next_step);
  saved_step_ = next_step;
  rewinds_ = 0;
  if (recipe_.run.checkpoint_in_background) {
    background_.start(folder, meta, network_.ops(), network_.params());
    return;
  }
  HostParams host(network_.params(), network_.ops());
  host.download();
  save_checkpoint(folder, host.table(), meta, grid_);
  announce_save(folder);
}

void Trainer::complete_save_if_ready() {
  if (!background_.pending().empty() && background_.is_written()) complete_save();
}

void Trainer::complete_save() {
  const std::string folder = background_.pending();
  if (folder.empty()) return;
  observers_.activity.enter_phase("saving a checkpoint", /*is_patient=*/true);
  background_.finish();
  announce_save(folder);
}

// A checkpoint on its way would have been there.
void Trainer::fail(const std::string& reason) {
  std::string more;
  try {
    complete_save();
  } catch (const std::exception& error) {
    more = concat("; besides, ", error.what());
  }
  throw RuntimeFault(reason + more);
}

void Trainer::announce_save(const std::string& folder) {
  if (progress_ == nullptr) return;
  progress_->say("saved " + folder);
  try {
    prune_checkpoints(run_folder_, recipe_.run.keep_checkpoints, recipe_.run.keep_every);
  } catch (const RuntimeFault& error) {  // what matters is saved; the next save tries again
    progress_->say(std::string("warning: ") + error.what());
  }
}

void Trainer::save_and_stop(std::int64_t next_step, int signal) {
  const char* const name = StopSignals::name_of(signal);
  if (progress_ != nullptr) progress_->say(concat(name, ": stopping after ", next_step, " steps"));
  save(next_step);
  complete_save();
  if (progress_ == nullptr) return;
  progress_->say(concat("stopped by ", name, ", exit code ", StopSignals::exit_code_of(signal),
                        "; train --resume goes on from step ", next_step));
}

}  // namespace openmoe
