#include "core/model/step_stats.h"

#include <algorithm>

#include "core/base/check.h"

namespace openmoe {
namespace {

// Calls visit(double&) on every number of the sums, always in the same order.
template <typename Sums, typename Visit>
void for_each_number(Sums& sums, Visit visit) {
  visit(sums.cross_entropy);
  visit(sums.log_z_square);
  visit(sums.correct);
  for (auto& layer : sums.moe) {
    visit(layer.balance);
    visit(layer.z);
    visit(layer.dropped_first);
    visit(layer.dropped_second);
    for (auto& value : layer.chosen) visit(value);
    for (auto& value : layer.kept) visit(value);
  }
}

}  // namespace

void BatchCounts::add(const BatchCounts& other) {
  BatchCounts copy = other;
  for (std::size_t i = 0; i < values().size(); ++i) values()[i] += copy.values()[i];
}

BatchCounts count_batch(const Batch& batch, const RoutingConfig& routing, bool has_moe) {
  BatchCounts counts;
  const auto n = static_cast<std::int64_t>(batch.inputs.size());
  counts.positions = static_cast<double>(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    counts.loss_weight += static_cast<double>(batch.loss_weights[at]);
    counts.loss_tokens += batch.loss_weights[at] > 0.0f ? 1.0 : 0.0;
    counts.real_tokens += batch.segment_ids[at] > 0 ? 1.0 : 0.0;
  }
  if (!has_moe) return counts;
  const std::int64_t group = routing.of_call(n).group_tokens;
  OPENMOE_CHECK(n % group == 0, n, " tokens are not whole groups of ", group);
  for (std::int64_t begin = 0; begin < n; begin += group) {
    const auto first = batch.segment_ids.begin() + begin;
    const auto real = std::count_if(first, first + group, [](std::int32_t id) { return id > 0; });
    const auto routed = routing.route_padding ? group : static_cast<std::int64_t>(real);
    counts.routed_tokens += static_cast<double>(routed);
    counts.routed_groups += routed > 0 ? 1.0 : 0.0;
  }
  return counts;
}

StepSums::StepSums(std::int64_t num_moe_layers, std::int64_t num_experts) {
  MoeLayerSums layer;
  layer.chosen.assign(static_cast<std::size_t>(num_experts), 0.0);
  layer.kept = layer.chosen;
  moe.assign(static_cast<std::size_t>(num_moe_layers), layer);
}

std::vector<double> StepSums::flatten() const {
  std::vector<double> flat;
  for_each_number(*this, [&](double value) { flat.push_back(value); });
  return flat;
}

void StepSums::assign(std::span<const double> flat) {
  std::size_t next = 0;
  for_each_number(*this, [&](double& value) {
    OPENMOE_CHECK(next < flat.size(), "too few numbers: ", flat.size());
    value = flat[next++];
  });
  OPENMOE_CHECK(next == flat.size(), flat.size(), " numbers for ", next);
}

StepLosses losses_from(const StepSums& sums, const BatchCounts& counts, const LossConfig& config) {
  const auto ratio = [](double sum, double count) { return count > 0.0 ? sum / count : 0.0; };
  StepLosses losses;
  losses.cross_entropy = ratio(sums.cross_entropy, counts.loss_weight);
  losses.logits_z = config.logits_z_weight * ratio(sums.log_z_square, counts.loss_weight);
  losses.accuracy = ratio(sums.correct, counts.loss_weight);
  const auto layers = static_cast<double>(sums.moe.size());
  for (const MoeLayerSums& layer : sums.moe) {
    losses.load_balance +=
        config.load_balance_weight / layers * ratio(layer.balance, counts.routed_groups);
    losses.router_z += config.router_z_weight / layers * ratio(layer.z, counts.routed_tokens);
  }
  losses.total = losses.cross_entropy + losses.logits_z + losses.load_balance + losses.router_z;
  return losses;
}

}  // namespace openmoe
