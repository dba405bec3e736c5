// Routing decisions made on purpose for the tests of the token exchange: what a router would hand
// to plan(), for any rank, so that every rank can work out what every other rank sends.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/rng.h"
#include "core/moe/token_exchange.h"

namespace openmoe::test {

enum class Load { even, random, skewed, all_to_one, sparse, one_rank_only, nothing };

struct Decision {
  std::vector<std::int32_t> choice, slot;  // (N, 2)
};

// Slots as the router gives them: in each group, first choices in token order, then second choices;
// none beyond the capacity.
inline Decision make_decision(const ExchangeShape& shape, Load load, int ep_rank,
                              std::uint64_t seed) {
  const std::int64_t N = shape.num_tokens, E = shape.num_experts, groups = N / shape.group_tokens;
  Decision decision;
  decision.choice.resize(static_cast<std::size_t>(2 * N));
  decision.slot.assign(static_cast<std::size_t>(2 * N), -1);
  Rng rng(seed, stream_id("decision", static_cast<std::uint64_t>(ep_rank)));
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(rng.next_below(static_cast<std::uint64_t>(n)));
  };
  std::vector<bool> routed(static_cast<std::size_t>(N), load != Load::nothing);
  for (std::int64_t n = 0; n < N; ++n) {
    std::int64_t first = 0, second = 0;
    if (load == Load::even) first = (n + ep_rank) % E, second = (first + 1) % E;
    if (load == Load::all_to_one) first = E - 1, second = 0;
    if (load == Load::random || load == Load::sparse || load == Load::one_rank_only)
      first = below(E), second = (first + 1 + below(E - 1)) % E;
    if (load == Load::skewed)
      first = below(4) == 0 ? below(E) : 0, second = (first + 1 + below(E > 2 ? 2 : 1)) % E;
    if (load == Load::sparse) routed[static_cast<std::size_t>(n)] = below(5) == 0;
    if (load == Load::one_rank_only) routed[static_cast<std::size_t>(n)] = ep_rank == 0;
    decision.choice[static_cast<std::size_t>(2 * n)] = static_cast<std::int32_t>(first);
    decision.choice[static_cast<std::size_t>(2 * n + 1)] = static_cast<std::int32_t>(second);
  }
  std::vector<std::int32_t> queue(static_cast<std::size_t>(groups * E), 0);
  for (std::int64_t group = 0; group < groups; ++group)
    for (std::int64_t k = 0; k < 2; ++k)
      for (std::int64_t n = group * shape.group_tokens; n < (group + 1) * shape.group_tokens; ++n) {
        if (!routed[static_cast<std::size_t>(n)]) continue;
        const auto a = static_cast<std::size_t>(2 * n + k);
        const std::int32_t place =
            queue[static_cast<std::size_t>(group * E + decision.choice[a])]++;
        if (place < shape.capacity) decision.slot[a] = place;
      }
  return decision;
}

// One kept assignment, in the order that the exchange promises.
struct ExpectedRow {
  std::int64_t source = 0, token = 0, expert = 0, choice = 0;
  bool operator==(const ExpectedRow&) const = default;
};

// Rows of one rank for one expert, by (group, slot), found by search.
inline std::vector<ExpectedRow> rows_for(const ExchangeShape& shape, const Decision& decision,
                                         std::int64_t source, std::int64_t expert) {
  std::vector<ExpectedRow> rows;
  for (std::int64_t group = 0; group < shape.num_tokens / shape.group_tokens; ++group)
    for (std::int64_t slot = 0; slot < shape.capacity; ++slot)
      for (std::int64_t n = group * shape.group_tokens; n < (group + 1) * shape.group_tokens; ++n)
        for (std::int64_t k = 0; k < 2; ++k) {
          const auto a = static_cast<std::size_t>(2 * n + k);
          if (decision.choice[a] == expert && decision.slot[a] == slot)
            rows.push_back({source, n, expert, k});
        }
  return rows;
}

}  // namespace openmoe::test
