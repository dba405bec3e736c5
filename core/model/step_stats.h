// What a step counts before its forward pass and measures during it. All are plain sums over
// tokens, so that the values of micro-batches and ranks add up; nothing is averaged before the end
// (a rank's mean would weigh its tokens wrongly).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/batch.h"
#include "core/config/recipe.h"

namespace openmoe {

// Counts over the whole global batch; every loss is divided by them, so they must be known (and
// summed over ranks) before the forward pass.
struct BatchCounts {
  double loss_weight = 0.0;    // sum of loss weights
  double positions = 0.0;      // rows * sequence_length
  double real_tokens = 0.0;    // positions that are not padding
  double loss_tokens = 0.0;    // positions with a loss weight above 0
  double routed_tokens = 0.0;  // tokens that enter the routers
  double routed_groups = 0.0;  // routing groups with at least one such token

  std::span<double> values() { return {&loss_weight, 6}; }
  void add(const BatchCounts& other);
};
static_assert(sizeof(BatchCounts) == 6 * sizeof(double), "values() spans every member");

// Counts of the rows of `batch`.
BatchCounts count_batch(const Batch& batch, const RoutingConfig& routing, bool has_moe);

// Sums of one MoE layer over tokens and groups. Loads are assignments per expert, before and after
// drops.
struct MoeLayerSums {
  double balance = 0.0;  // sum over groups of E * sum_e f_e P_e
  double z = 0.0;        // sum over routed tokens of (log Z)^2
  double dropped_first = 0.0;
  double dropped_second = 0.0;
  std::vector<double> chosen;  // (E) assignments that chose the expert
  std::vector<double> kept;    // (E) assignments that got a slot
};

struct StepSums {
  double cross_entropy = 0.0;
  double log_z_square = 0.0;
  double correct = 0.0;
  std::vector<MoeLayerSums> moe;

  StepSums() = default;
  StepSums(std::int64_t num_moe_layers, std::int64_t num_experts);
  // All numbers in a fixed order, for one reduction over ranks.
  std::vector<double> flatten() const;
  void assign(std::span<const double> flat);
};

// The losses of a step as they are logged; the weighted terms add up to `total`.
struct StepLosses {
  double total = 0.0;
  double cross_entropy = 0.0;
  double logits_z = 0.0;
  double load_balance = 0.0;
  double router_z = 0.0;
  double accuracy = 0.0;
};

// From sums and counts over all ranks. Load-balance and router z-loss are means over MoE layers.
StepLosses losses_from(const StepSums& sums, const BatchCounts& counts, const LossConfig& config);

}  // namespace openmoe
