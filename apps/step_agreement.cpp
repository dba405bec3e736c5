#include "apps/step_agreement.h"

#include <algorithm>
#include <span>
#include <vector>

#include "apps/stop_signals.h"

namespace openmoe {

StepAgreement agree_on_step(const Batch& batch, const Recipe& recipe, ProcessGrid& grid,
                            int stop_signal) {
  constexpr auto& kSignals = StopSignals::kSignals;
  BatchCounts own = count_batch(batch, recipe.routing, recipe.model.num_moe_layers() > 0);
  const std::span<const double> counted = own.values();
  // Counts, then one flag per signal. The ranks of a tensor group have the same rows, but a signal
  // may reach one of them alone.
  std::vector<double> sums(counted.size() + kSignals.size(), 0.0);
  std::copy(counted.begin(), counted.end(), sums.begin());
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    sums[counted.size() + i] = stop_signal == kSignals[i] ? 1.0 : 0.0;
  grid.data().all_reduce_sum(std::span<double>(sums));
  if (grid.tp() > 1) grid.tensor().all_reduce_sum(std::span<double>(sums).subspan(counted.size()));

  StepAgreement agreed;
  std::copy_n(sums.begin(), counted.size(), agreed.counts.values().begin());
  for (std::size_t i = kSignals.size(); i-- > 0;)
    if (sums[counted.size() + i] > 0.0) agreed.stop_signal = kSignals[i];
  return agreed;
}

}  // namespace openmoe
