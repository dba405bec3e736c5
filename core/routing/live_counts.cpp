#include "core/routing/live_counts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/check.h"

namespace openmoe {

LiveCounts::LiveCounts(std::int64_t num_layers, std::int64_t num_experts, std::int64_t num_sources,
                       std::int64_t sequence_length, std::vector<std::int32_t> tracked)
    : num_experts_(num_experts), length_(sequence_length), tracked_(std::move(tracked)) {
  Layer layer;
  layer.first.assign(static_cast<std::size_t>(num_experts), 0);
  layer.second = layer.kept = layer.first;
  layer.by_position.resize(static_cast<std::size_t>(kBuckets));
  layer.by_source.resize(static_cast<std::size_t>(num_sources));
  layer.token_first.assign(tracked_.size() * static_cast<std::size_t>(num_experts), 0);
  layers_.assign(static_cast<std::size_t>(num_layers), layer);
}

void LiveCounts::add(std::size_t layer_index, const Batch& batch, const RouterView& router) {
  Layer& layer = layers_.at(layer_index);
  const auto E = static_cast<std::size_t>(num_experts_);
  for (std::size_t n = 0; n < batch.inputs.size(); ++n) {
    if (batch.segment_ids[n] == 0) continue;
    const auto first = static_cast<std::size_t>(router.choice[2 * n]);
    const auto second = static_cast<std::size_t>(router.choice[2 * n + 1]);
    const bool lost_first = router.slot[2 * n] < 0, lost_second = router.slot[2 * n + 1] < 0;
    ++layer.first[first];
    ++layer.second[second];
    if (!lost_first) ++layer.kept[first];
    if (!lost_second) ++layer.kept[second];
    const auto T = static_cast<std::size_t>(length_);
    const std::size_t bucket = n % T * static_cast<std::size_t>(kBuckets) / T;
    const auto source = static_cast<std::size_t>(batch.row_sources[n / T]);
    for (Losses* losses : {&layer.by_position[bucket], &layer.by_source.at(source)}) {
      ++losses->tokens;
      losses->first += lost_first ? 1 : 0;
      losses->second += lost_second ? 1 : 0;
      losses->both += lost_first && lost_second ? 1 : 0;
    }
    const float* const prob = router.prob + n * E;
    float entropy = 0.0f;
    for (std::size_t e = 0; e < E; ++e)
      if (prob[e] > 0.0f) entropy -= prob[e] * std::log2(prob[e]);
    layer.entropy += static_cast<double>(entropy);
    layer.confidence += static_cast<double>(prob[first]);
    const auto id = std::lower_bound(tracked_.begin(), tracked_.end(), batch.inputs[n]);
    if (id != tracked_.end() && *id == batch.inputs[n])
      ++layer.token_first[static_cast<std::size_t>(id - tracked_.begin()) * E + first];
  }
}

LiveCounts::Losses LiveCounts::total(std::size_t layer) const {
  Losses sum;
  for (const Losses& losses : layers_.at(layer).by_position) {
    sum.tokens += losses.tokens;
    sum.first += losses.first;
    sum.second += losses.second;
    sum.both += losses.both;
  }
  return sum;
}

void LiveCounts::each_integer(const std::function<void(std::int64_t&)>& visit) {
  for (Layer& layer : layers_) {
    for (auto* counts : {&layer.first, &layer.second, &layer.kept, &layer.token_first})
      for (std::int64_t& count : *counts) visit(count);
    for (auto* sets : {&layer.by_position, &layer.by_source})
      for (Losses& losses : *sets) {
        visit(losses.tokens);
        visit(losses.first);
        visit(losses.second);
        visit(losses.both);
      }
  }
}

std::vector<std::int64_t> LiveCounts::integers() const {
  std::vector<std::int64_t> flat;
  const_cast<LiveCounts*>(this)->each_integer(  // visits without changing
      [&](std::int64_t& count) { flat.push_back(count); });
  return flat;
}

std::vector<double> LiveCounts::reals() const {
  std::vector<double> flat;
  for (const Layer& layer : layers_) {
    flat.push_back(layer.entropy);
    flat.push_back(layer.confidence);
  }
  return flat;
}

void LiveCounts::assign(const std::vector<std::int64_t>& integers,
                        const std::vector<double>& reals) {
  std::size_t next = 0;
  each_integer([&](std::int64_t& count) { count = integers.at(next++); });
  OPENMOE_CHECK(next == integers.size() && reals.size() == 2 * layers_.size(), next, " of ",
                integers.size());
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    layers_[l].entropy = reals[2 * l];
    layers_[l].confidence = reals[2 * l + 1];
  }
}

std::vector<std::int32_t> most_frequent_ids(const std::vector<std::int64_t>& counts,
                                            std::size_t most) {
  std::vector<std::int32_t> ids(counts.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    return counts[static_cast<std::size_t>(a)] > counts[static_cast<std::size_t>(b)];
  });
  ids.resize(std::min(most, ids.size()));
  std::erase_if(ids, [&](std::int32_t id) { return counts[static_cast<std::size_t>(id)] == 0; });
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace openmoe
