#include "apps/bench_step.h"

#include <algorithm>
#include <cstddef>

#include "core/base/rng.h"
#include "core/param_table.h"

namespace openmoe {

Batch random_batch(const Recipe& recipe, std::int64_t rows, std::int64_t data_rank) {
  Batch batch;
  batch.resize(rows, recipe.data.sequence_length);
  const auto vocab = static_cast<std::uint64_t>(recipe.model.vocab_size);
  Rng rng(1, stream_id("bench", static_cast<std::uint64_t>(data_rank)));
  for (std::size_t i = 0; i < batch.inputs.size(); ++i) {
    batch.inputs[i] = static_cast<std::int32_t>(rng.next_below(vocab));
    batch.targets[i] = static_cast<std::int32_t>(rng.next_below(vocab));
    batch.loss_weights[i] = 1.0f;
    batch.segment_ids[i] = 1;
  }
  return batch;
}

double step_flops(const Recipe& recipe, const BatchCounts& counts, const StepSums& sums) {
  Recipe without_experts = recipe;
  without_experts.routing.capacity_counts = CapacityCounts::tokens;
  without_experts.routing.capacity_factor = 0.0;
  without_experts.routing.min_capacity = 0;
  const ModelConfig& model = recipe.model;
  const double expert =
      6.0 * static_cast<double>(model.d_model * (model.gate_dim() + 2 * model.ffn_dim));
  double flops = flops_per_token(without_experts) * counts.positions;
  for (const MoeLayerSums& layer : sums.moe)
    for (const double kept : layer.kept) flops += expert * kept;
  return flops;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace openmoe
