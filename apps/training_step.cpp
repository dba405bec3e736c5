#include "apps/training_step.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/train/adafactor.h"

namespace openmoe {

std::int64_t micro_batch_rows(const Recipe& recipe, std::int64_t num_data_ranks) {
  const std::int64_t rows = recipe.data.batch_rows / num_data_ranks;
  return recipe.parallel.micro_batch_rows > 0 ? std::min(rows, recipe.parallel.micro_batch_rows)
                                              : rows;
}

void copy_rows(Batch& out, const Batch& batch, std::int64_t begin, std::int64_t rows) {
  const std::int64_t length = batch.sequence_length;
  out.resize(rows, length);
  const std::int64_t available = std::min(rows, batch.num_rows - begin);
  if (available <= 0) return;
  const auto copy = [&](auto& to, const auto& from, std::int64_t width) {
    std::copy_n(from.begin() + begin * width, available * width, to.begin());
  };
  copy(out.inputs, batch.inputs, length);
  copy(out.targets, batch.targets, length);
  copy(out.loss_weights, batch.loss_weights, length);
  copy(out.segment_ids, batch.segment_ids, length);
  copy(out.row_sources, batch.row_sources, 1);
}

void check_trainable(const Recipe& recipe) {
  if (recipe.model.num_moe_layers() > 0 && recipe.routing.capacity_counts == CapacityCounts::port)
    throw UserError(
        "routing.capacity_counts: found port, which is for evaluation and generation only; allowed "
        "in training: tokens (as the released weights were trained), assignments, dropless");
}

void sum_over_ranks(StepSums& sums, ProcessGrid& grid) {
  std::vector<double> flat = sums.flatten();
  grid.data().all_reduce_sum(flat);
  sums.assign(flat);
}

bool StepOutcome::is_finite() const {
  return std::isfinite(losses.total) && std::isfinite(grad_norm);
}

TrainingStep::TrainingStep(Network& network, ProcessGrid& grid, const Recipe& recipe)
    : network_(network),
      grid_(grid),
      recipe_(recipe),
      reducer_(network.ops(), network.params(), grid, recipe.parallel.reduction_bucket_kb << 10) {
  if (recipe.parallel.shard_update)
    sharded_.emplace(network.ops(), network.params(), grid, network.tensor());
  network.params().zero_gradients(network.ops());
  bad_gradients_.resize(network.params().params().size());
}

TrainingStep::~TrainingStep() {
  network_.model().observe_gradients({});
}

StepOutcome TrainingStep::run(const Batch& batch, const BatchCounts& counts, std::int64_t step,
                              const Observer& observe) {
  return recipe_.parallel.update_in_backward ? run_in_backward(batch, counts, step, observe)
                                             : run_whole(batch, counts, step, observe);
}

void TrainingStep::run_micro_batches(const Batch& batch, const BatchCounts& counts, StepSums& sums,
                                     const Observer& observe) {
  const std::int64_t rows = network_.model().rows();
  for (std::int64_t row = 0; row < batch.num_rows; row += rows) {
    if (announce_) announce_(row);
    copy_rows(micro_batch_, batch, row, rows);
    if (reducer_.has_buckets() && row + rows >= batch.num_rows)
      network_.model().observe_gradients([this](Param& param) { reducer_.complete(param); });
    network_.model().train(micro_batch_, counts, sums);
    if (observe) observe(micro_batch_, row);
  }
}

StepOutcome TrainingStep::run_whole(const Batch& batch, const BatchCounts& counts,
                                    std::int64_t step, const Observer& observe) {
  StepOutcome out;
  out.sums = StepSums(recipe_.model.num_moe_layers(), recipe_.model.num_experts);
  network_.params().zero_gradients(network_.ops());
  run_micro_batches(batch, counts, out.sums, observe);
  network_.ops().enter_layer(-1, Pass::backward);
  network_.ops().enter("gradient reduction");
  if (reducer_.has_buckets()) {
    network_.model().observe_gradients({});
    reducer_.finish();
  } else if (sharded_) {
    sharded_->reduce();
  } else {
    reducer_.reduce();
  }
  sum_over_ranks(out.sums, grid_);
  out.losses = losses_from(out.sums, counts, recipe_.loss);
  out.grad_norm = sharded_ ? sharded_->grad_norm() : reducer_.grad_norm();
  network_.ops().enter("optimizer");
  if (out.is_finite()) {
    out.was_accepted = accepts(out.losses);
    if (!out.was_accepted) return out;
    if (sharded_)
      sharded_->update(recipe_.optimizer, step);
    else
      adafactor_step(network_.ops(), network_.tensor(), network_.params(), recipe_.optimizer, step);
    return out;
  }
  const auto& params = network_.params().params();
  for (std::size_t i = 0; i < params.size(); ++i) {
    const bool is_finite = sharded_ ? sharded_->is_finite(i)
                                    : std::isfinite(network_.ops().sum_of_squares(params[i].grad));
    bad_gradients_[i] = is_finite ? 0 : grid_.world_rank() + 1;
  }
  return out;
}

bool TrainingStep::accepts(const StepLosses& losses) const {
  return !accepts_ || !std::isfinite(losses.total) || accepts_(losses);
}

// `param` may be a slice of the table's.
void TrainingStep::mark_bad_gradient(const Param& param) {
  const auto& params = network_.params().params();
  for (std::size_t i = 0; i < params.size(); ++i)
    if (params[i].name == param.name) bad_gradients_[i] = grid_.world_rank() + 1;
}

// The table is in the order of the forward pass, so the backward pass met the last one first.
std::string TrainingStep::describe_non_finite() {
  std::vector<std::int64_t> bad = bad_gradients_;
  grid_.world().all_reduce_max(std::span<std::int64_t>(bad));
  const auto total = static_cast<std::int64_t>(bad.size());
  const std::int64_t num_bad = total - std::count(bad.begin(), bad.end(), 0);
  if (num_bad == 0) return "every gradient is finite";
  const auto first = std::find_if(bad.rbegin(), bad.rend(), [](auto rank) { return rank > 0; });
  const auto place = static_cast<std::size_t>(bad.rend() - first - 1);
  const Param& param = network_.params().params()[place];
  return concat("the first gradient of the backward pass that is not finite is that of ",
                param.name,
                param.sharding != Sharding::replicated ? concat(" on rank ", *first - 1) : "", "; ",
                num_bad, " of ", total, " are not");
}

// Gradients are zero between uses of their common place. Sums are complete before the first of
// them, so that all ranks know in time whether the loss is finite.
StepOutcome TrainingStep::run_in_backward(const Batch& batch, const BatchCounts& counts,
                                          std::int64_t step, const Observer& observe) {
  OPENMOE_CHECK(batch.num_rows <= network_.model().rows(), "one micro-batch");
  Ops& ops = network_.ops();
  StepOutcome out;
  out.sums = StepSums(recipe_.model.num_moe_layers(), recipe_.model.num_experts);
  std::fill(bad_gradients_.begin(), bad_gradients_.end(), 0);
  bool is_first = true;
  network_.model().observe_gradients([&](Param& param) {
    if (std::exchange(is_first, false)) {
      sum_over_ranks(out.sums, grid_);
      out.losses = losses_from(out.sums, counts, recipe_.loss);
      out.was_accepted = accepts(out.losses);
    }
    const char* const part = ops.enter("optimizer");
    reducer_.reduce(param);
    const double squares = reducer_.add_squares(param);
    if (!std::isfinite(squares)) mark_bad_gradient(param);
    if (out.was_accepted && std::isfinite(out.losses.total) && std::isfinite(squares))
      adafactor_update(ops, network_.tensor(), param, recipe_.optimizer, step);
    ops.zero(param.grad);
    ops.enter(part);
  });
  run_micro_batches(batch, counts, out.sums, observe);
  out.grad_norm = reducer_.norm_of_added();
  return out;
}

}  // namespace openmoe
