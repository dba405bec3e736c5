#include "apps/step_agreement.h"

#include <algorithm>
#include <span>

#include "apps/stop_signals.h"

namespace openmoe {

StepAgreement agree_on_step(const Batch& batch, const Recipe& recipe, ProcessGrid& grid,
                            const RankNote& note) {
  constexpr auto& kSignals = StopSignals::kSignals;
  BatchCounts own = count_batch(batch, recipe.routing, recipe.model.num_moe_layers() > 0);
  const std::span<const double> counted = own.values();
  // Counts, then one flag per signal, then one place per rank: a sum of zeros and one value.
  const std::size_t first_rank = counted.size() + kSignals.size();
  std::vector<double> sums(first_rank + static_cast<std::size_t>(grid.num_data_ranks()), 0.0);
  std::copy(counted.begin(), counted.end(), sums.begin());
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    sums[counted.size() + i] = note.stop_signal == kSignals[i] ? 1.0 : 0.0;
  sums[first_rank + static_cast<std::size_t>(grid.data_rank())] = note.worked_seconds;
  grid.data().all_reduce_sum(std::span<double>(sums));

  StepAgreement agreed;
  std::copy_n(sums.begin(), counted.size(), agreed.counts.values().begin());
  for (std::size_t i = kSignals.size(); i-- > 0;)
    if (sums[counted.size() + i] > 0.0) agreed.stop_signal = kSignals[i];
  agreed.worked_seconds.assign(sums.begin() + static_cast<std::ptrdiff_t>(first_rank), sums.end());
  return agreed;
}

}  // namespace openmoe
