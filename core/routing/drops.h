// Which of a trace's choices find a slot under a capacity rule: the queue of the router (ops.h,
// router_forward) run again on recorded choices. All first choices of a group are served in order
// of position, then all second ones, and so on; what meets a full queue is dropped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "core/routing/trace.h"

namespace openmoe {

struct DropRule {
  // tokens: C = round(cf G / E). assignments: C = round(K cf G / E). port: floor(K cf G / E) made
  // even. All at least min_capacity. dropless: C = G, and the factor says nothing.
  CapacityCounts counts = CapacityCounts::tokens;
  double capacity_factor = 1.25;
  // G. Groups are blocks of G consecutive places in the grid of a source's sequences, each of which
  // takes T places; sequences of other sources between them do not count.
  std::int64_t group_tokens = 0;
  std::int64_t min_capacity = 4;

  std::int64_t capacity(std::int64_t num_experts, std::int64_t top_k) const;
  std::string name() const;  // "tokens:1.25:4096", "dropless"
  bool operator==(const DropRule&) const = default;
};

// "tokens:1.25:4096", the group's size, 1 to 2^30, may be missing: then `group_tokens`. Throws
// UserError.
DropRule parse_drop_rule(const std::string& text, std::int64_t group_tokens);

// (N, K): 1 where the choice is served.
std::vector<std::uint8_t> simulate_drops(const RoutingTrace& trace, const LayerTrace& layer,
                                         const DropRule& rule);

// Of a set of tokens.
struct DropCounts {
  std::int64_t tokens = 0;
  std::int64_t lost_first = 0;   // the first choice was dropped
  std::int64_t lost_second = 0;  // the second
  std::int64_t lost_any = 0;     // at least one
  std::int64_t lost_all = 0;     // no expert saw the token

  void add(const std::uint8_t* kept, std::int64_t top_k);
};

// keys (N): of each token, the set it belongs to, 0 to num_sets - 1; -1: none.
std::vector<DropCounts> count_drops(const std::vector<std::uint8_t>& kept, std::int64_t top_k,
                                    const std::vector<std::int32_t>& keys, std::int64_t num_sets);

}  // namespace openmoe
