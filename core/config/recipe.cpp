#include "core/config/recipe.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "core/config/recipe_io.h"

namespace openmoe {

std::int64_t RoutingConfig::capacity(std::int64_t num_experts, bool training) const {
  // A token chooses an expert once at most.
  if (capacity_counts == CapacityCounts::dropless) return group_tokens;
  // Product, quotient, then factor, in this order: the same doubles as the reference, so that
  // halves round alike.
  const double factor = training ? capacity_factor : eval_capacity_factor;
  if (capacity_counts == CapacityCounts::port) {
    const double wanted =
        2 * factor * static_cast<double>(group_tokens) / static_cast<double>(num_experts);
    const auto floor = static_cast<std::int64_t>(std::floor(wanted));
    return std::max(min_capacity, floor + floor % 2);
  }
  double slots = factor * static_cast<double>(group_tokens) / static_cast<double>(num_experts);
  if (capacity_counts == CapacityCounts::assignments) slots *= 2;
  return std::max(min_capacity, static_cast<std::int64_t>(std::nearbyint(slots)));  // half to even
}

RoutingConfig RoutingConfig::of_call(std::int64_t num_tokens) const {
  RoutingConfig routing = *this;
  if (capacity_counts == CapacityCounts::port) routing.group_tokens = num_tokens;
  return routing;
}

std::int64_t first_step_of_phase(const Recipe& recipe, std::int64_t phase) {
  OPENMOE_CHECK(phase >= 0 && phase < static_cast<std::int64_t>(recipe.data.phases.size()),
                "phase ", phase);
  if (phase == 0) return 0;
  const PhaseConfig& before = recipe.data.phases[static_cast<std::size_t>(phase - 1)];
  if (before.until_step > 0) return before.until_step;
  OPENMOE_CHECK(before.until_positions > 0, "phase ", phase - 1, " ends in tokens or not at all");
  const std::int64_t positions_per_step = recipe.data.batch_rows * recipe.data.sequence_length;
  return (before.until_positions + positions_per_step - 1) / positions_per_step;
}

std::int64_t phase_at(const Recipe& recipe, std::int64_t step) {
  OPENMOE_CHECK(!recipe.data.phases.empty() && step >= 0, "step ", step);
  auto phase = static_cast<std::int64_t>(recipe.data.phases.size()) - 1;
  while (phase > 0 && first_step_of_phase(recipe, phase) > step) --phase;
  return phase;
}

}  // namespace openmoe
