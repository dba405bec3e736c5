#include "apps/held_out.h"

#include <algorithm>

#include "apps/training_step.h"

namespace openmoe {

HeldOutResult evaluate_held_out(Network& network, ProcessGrid& grid, BatchStream& stream,
                                std::int64_t step, const std::string& source, std::int64_t num_rows,
                                const std::function<void(const Batch&)>& observe) {
  const Recipe& recipe = stream.recipe();
  const std::int64_t num_moe_layers = recipe.model.num_moe_layers();
  const std::int64_t block = network.model().rows(), ranks = grid.num_data_ranks();
  HeldOutResult result;
  result.sums = StepSums(num_moe_layers, recipe.model.num_experts);
  Batch rows, padded;
  for (std::int64_t begin = 0; begin < num_rows; begin += block * ranks) {
    const std::int64_t first = std::min(num_rows, begin + grid.data_rank() * block);
    const std::int64_t last = std::min(num_rows, first + block);
    rows.resize(0, recipe.data.sequence_length);
    if (last > first) stream.read_validation(step, source, first, last, rows);
    copy_rows(padded, rows, 0, block);
    network.model().evaluate(padded, result.sums);
    result.counts.add(count_batch(padded, recipe.routing, num_moe_layers > 0));
    if (observe) observe(padded);
  }
  sum_over_ranks(result.sums, grid);
  grid.data().all_reduce_sum(result.counts.values());
  result.losses = losses_from(result.sums, result.counts, recipe.loss);
  return result;
}

}  // namespace openmoe
