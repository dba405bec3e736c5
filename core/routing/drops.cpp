#include "core/routing/drops.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"

namespace openmoe {
namespace {

constexpr std::int64_t kMaxGroupTokens = std::int64_t{1} << 30;
constexpr double kMaxCapacityFactor = 1e6;

// Sequences by their source, those of one source in the order of the trace.
std::vector<std::size_t> by_source(const RoutingTrace& trace) {
  std::vector<std::size_t> order(trace.sequence_sources.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return trace.sequence_sources[a] < trace.sequence_sources[b];
  });
  return order;
}

}  // namespace

std::int64_t DropRule::capacity(std::int64_t num_experts, std::int64_t top_k) const {
  RoutingConfig config;
  config.group_tokens = group_tokens;
  config.min_capacity = min_capacity;
  // RoutingConfig counts two choices per token; the factor takes up another K.
  const double choices = counts == CapacityCounts::tokens ? 1.0 : static_cast<double>(top_k) / 2;
  config.capacity_factor = capacity_factor * choices;
  config.capacity_counts = counts;
  return config.capacity(num_experts, true);
}

std::string DropRule::name() const {
  if (counts == CapacityCounts::dropless) return "dropless";
  return concat(enum_name(counts), ":", capacity_factor, ":", group_tokens);
}

DropRule parse_drop_rule(const std::string& text, std::int64_t group_tokens) {
  const auto fail = [&] {
    throw UserError("drop rule " + text +
                    ": found something else than RULE:FACTOR[:GROUP], allowed: tokens, assignments "
                    "or port (or dropless alone), a capacity factor above 0 and at most 1e6, and 1 "
                    "to 2^30 tokens of a group, "
                    "such as tokens:1.25:4096");
  };
  DropRule rule;
  rule.group_tokens = group_tokens;
  const std::size_t first = text.find(':');
  if (text == enum_name(CapacityCounts::dropless)) {
    rule.counts = CapacityCounts::dropless;
    return rule;
  }
  if (first == std::string::npos) fail();
  const std::size_t second = std::min(text.find(':', first + 1), text.size());
  if (!parse_enum(text.substr(0, first), rule.counts) || rule.counts == CapacityCounts::dropless)
    fail();
  const auto parse = [&](std::size_t begin, std::size_t end, auto& value) {
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end) fail();
  };
  parse(first + 1, second, rule.capacity_factor);
  if (second < text.size()) parse(second + 1, text.size(), rule.group_tokens);
  if (!(rule.capacity_factor > 0) || rule.capacity_factor > kMaxCapacityFactor ||
      rule.group_tokens < 1 || rule.group_tokens > kMaxGroupTokens)
    fail();
  return rule;
}

std::vector<std::uint8_t> simulate_drops(const RoutingTrace& trace, const LayerTrace& layer,
                                         const DropRule& rule) {
  const std::int64_t K = trace.top_k, T = trace.sequence_length, G = rule.group_tokens;
  const std::int64_t capacity = rule.capacity(trace.num_experts, K);
  std::vector<std::uint8_t> kept(layer.choice.size(), 0);
  std::vector<std::int64_t> queue(static_cast<std::size_t>(trace.num_experts));
  std::vector<std::int64_t> group;  // its tokens
  const auto serve = [&] {
    std::fill(queue.begin(), queue.end(), 0);
    for (std::int64_t k = 0; k < K; ++k)
      for (const std::int64_t n : group) {
        const auto at = static_cast<std::size_t>(n * K + k);
        kept[at] = queue[layer.choice[at]]++ < capacity ? 1 : 0;
      }
    group.clear();
  };
  std::int64_t row = 0;  // of its source
  std::int64_t current = -1;
  std::int32_t source = -1;
  for (const std::size_t at : by_source(trace)) {
    row = trace.sequence_sources[at] == source ? row + 1 : 0;
    source = trace.sequence_sources[at];
    if (row == 0) serve();
    for (std::int64_t n = trace.sequence_offsets[at]; n < trace.sequence_offsets[at + 1]; ++n) {
      const std::int64_t index = (row * T + n - trace.sequence_offsets[at]) / G;
      if (index != current) serve();
      current = index;
      group.push_back(n);
    }
  }
  serve();
  return kept;
}

void DropCounts::add(const std::uint8_t* kept, std::int64_t top_k) {
  std::int64_t lost = 0;
  for (std::int64_t k = 0; k < top_k; ++k) lost += kept[k] == 0 ? 1 : 0;
  ++tokens;
  lost_first += kept[0] == 0 ? 1 : 0;
  lost_second += top_k > 1 && kept[1] == 0 ? 1 : 0;
  lost_any += lost > 0 ? 1 : 0;
  lost_all += lost == top_k ? 1 : 0;
}

std::vector<DropCounts> count_drops(const std::vector<std::uint8_t>& kept, std::int64_t top_k,
                                    const std::vector<std::int32_t>& keys, std::int64_t num_sets) {
  std::vector<DropCounts> counts(static_cast<std::size_t>(num_sets));
  for (std::size_t n = 0; n < keys.size(); ++n) {
    if (keys[n] < 0) continue;
    counts[static_cast<std::size_t>(keys[n])].add(
        kept.data() + static_cast<std::int64_t>(n) * top_k, top_k);
  }
  return counts;
}

}  // namespace openmoe
