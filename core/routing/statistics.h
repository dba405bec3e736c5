// Statistics of routing: tables of counts, and what can be said about them. All counts are whole
// numbers, so that results depend neither on the order of addition nor on the number of ranks.
//
// A key says of each token which row of a table it counts in: its source, position, id, ... -1
// leaves it out. Shares of experts are of the row's choices. All information is in bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/routing/trace.h"

namespace openmoe {

// Which choices count. The paper does not say which of the four its figures show.
enum class Counted { first, all, first_kept, all_kept };
inline constexpr Counted kCounted[] = {Counted::first, Counted::all, Counted::first_kept,
                                       Counted::all_kept};
const char* name_of(Counted counted);  // "first", "all", "first_kept", "all_kept"

struct CountTable {
  std::int64_t rows = 0;
  std::int64_t experts = 0;
  std::vector<std::int64_t> counts;  // (rows, experts)

  CountTable() = default;
  CountTable(std::int64_t num_rows, std::int64_t num_experts);
  std::span<const std::int64_t> row(std::int64_t r) const {
    return {counts.data() + r * experts, static_cast<std::size_t>(experts)};
  }
  std::span<std::int64_t> row(std::int64_t r) {
    return {counts.data() + r * experts, static_cast<std::size_t>(experts)};
  }
  std::int64_t total(std::int64_t r) const;
  std::vector<double> shares(std::int64_t r) const;  // 0 everywhere for an empty row
};

// `kept` (N, K) of simulate_drops, for first_kept and all_kept; unused otherwise.
CountTable count_experts(const RoutingTrace& trace, const LayerTrace& layer,
                         const std::vector<std::int32_t>& keys, std::int64_t num_rows,
                         Counted counted, const std::vector<std::uint8_t>& kept = {});

// The distinct values of `values` in rising order, and of each value its place among them; values
// below 0 are left out and have the key -1.
struct DistinctKeys {
  std::vector<std::int32_t> values;
  std::vector<std::int32_t> keys;
};
DistinctKeys distinct_keys(const std::vector<std::int32_t>& values);

double entropy_bits(std::span<const double> shares);
// Standard deviation of the shares over experts (Figures 15 and 16): 0 when all are 1/E.
double standard_deviation(std::span<const double> shares);
// sum_e min(p_e, q_e): 1 when two distributions are equal, 0 when they share no expert.
double overlap(std::span<const double> p, std::span<const double> q);
// Jensen-Shannon divergence of the rows' shares, every row that has counts weighing the same
// (Lin 1991): H(mean) - mean H. 0 when all are equal, log2(rows) when no two share an expert.
double jensen_shannon(const CountTable& table);
// The expert with the most counts, the first of several; -1 for an empty row.
std::int64_t favourite(std::span<const std::int64_t> counts);

struct Information {
  double bits = 0.0;            // I(expert; key), of the observed frequencies
  double corrected_bits = 0.0;  // less the bias of finite counts (Miller 1955, Madow), at least 0
  double expert_entropy = 0.0;  // H(expert): the most that any key can say
};
Information mutual_information(const CountTable& table);

// How two checkpoints route the same token ids. Tables by id; `ids` name the rows, rising.
struct TokenTable {
  std::vector<std::int32_t> ids;
  CountTable table;
};
struct Agreement {
  std::int64_t ids = 0;       // seen at least min_count times in both
  double mean_overlap = 0.0;  // of the shares, mean over these ids weighed by their counts in both
  double same_favourite = 0.0;  // share of these ids whose favourite expert is the same
};
Agreement compare_tokens(const TokenTable& a, const TokenTable& b, std::int64_t min_count);

}  // namespace openmoe
