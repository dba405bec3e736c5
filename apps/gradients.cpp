#include "apps/gradients.h"

#include <algorithm>
#include <vector>

namespace openmoe {

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

BatchCounts count_global(const Batch& batch, const Recipe& recipe, ProcessGrid& grid) {
  BatchCounts counts = count_batch(batch, recipe.routing, recipe.model.num_moe_layers() > 0);
  grid.data().all_reduce_sum(counts.values());
  return counts;
}

void sum_over_ranks(StepSums& sums, ProcessGrid& grid) {
  std::vector<double> flat = sums.flatten();
  grid.data().all_reduce_sum(flat);
  sums.assign(flat);
}

GradientStep::GradientStep(Network& network, ProcessGrid& grid, const Recipe& recipe)
    : network_(network),
      grid_(grid),
      model_(recipe.model),
      reducer_(network.ops(), network.params(), grid) {}

StepSums GradientStep::compute(const Batch& batch, const BatchCounts& counts,
                               const Observer& observe) {
  reducer_.zero();
  StepSums sums(model_.num_moe_layers(), model_.num_experts);
  const std::int64_t rows = network_.model().rows();
  for (std::int64_t row = 0; row < batch.num_rows; row += rows) {
    copy_rows(micro_batch_, batch, row, rows);
    network_.model().train(micro_batch_, counts, sums);
    if (observe) observe(micro_batch_, row);
  }
  reducer_.reduce();
  sum_over_ranks(sums, grid_);
  return sums;
}

}  // namespace openmoe
