#include "core/routing/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/check.h"

namespace openmoe {

const char* name_of(Counted counted) {
  switch (counted) {
    case Counted::first:
      return "first";
    case Counted::all:
      return "all";
    case Counted::first_kept:
      return "first_kept";
    case Counted::all_kept:
      return "all_kept";
  }
  return "";
}

CountTable::CountTable(std::int64_t num_rows, std::int64_t num_experts)
    : rows(num_rows),
      experts(num_experts),
      counts(static_cast<std::size_t>(num_rows * num_experts), 0) {}

std::int64_t CountTable::total(std::int64_t r) const {
  const auto values = row(r);
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

std::vector<double> CountTable::shares(std::int64_t r) const {
  const auto sum = static_cast<double>(total(r));
  std::vector<double> result;
  for (const std::int64_t count : row(r))
    result.push_back(sum > 0 ? static_cast<double>(count) / sum : 0.0);
  return result;
}

CountTable count_experts(const RoutingTrace& trace, const LayerTrace& layer,
                         const std::vector<std::int32_t>& keys, std::int64_t num_rows,
                         Counted counted, const std::vector<std::uint8_t>& kept) {
  const bool only_kept = counted == Counted::first_kept || counted == Counted::all_kept;
  const bool only_first = counted == Counted::first || counted == Counted::first_kept;
  OPENMOE_CHECK(keys.size() == trace.token_ids.size(), keys.size(), " keys");
  OPENMOE_CHECK(!only_kept || kept.size() == layer.choice.size(), kept.size(), " marks");
  const std::int64_t K = trace.top_k, last = only_first ? 1 : K;
  CountTable table(num_rows, trace.num_experts);
  for (std::size_t n = 0; n < keys.size(); ++n) {
    if (keys[n] < 0) continue;
    const auto row = table.row(keys[n]);
    for (std::int64_t k = 0; k < last; ++k) {
      const std::size_t at = n * static_cast<std::size_t>(K) + static_cast<std::size_t>(k);
      if (only_kept && kept[at] == 0) continue;
      ++row[layer.choice[at]];
    }
  }
  return table;
}

DistinctKeys distinct_keys(const std::vector<std::int32_t>& values) {
  DistinctKeys result;
  result.values = values;
  std::sort(result.values.begin(), result.values.end());
  result.values.erase(std::unique(result.values.begin(), result.values.end()), result.values.end());
  std::erase_if(result.values, [](std::int32_t value) { return value < 0; });
  result.keys.reserve(values.size());
  for (const std::int32_t value : values) {
    const auto place = std::lower_bound(result.values.begin(), result.values.end(), value);
    result.keys.push_back(value < 0 ? -1
                                    : static_cast<std::int32_t>(place - result.values.begin()));
  }
  return result;
}

double entropy_bits(std::span<const double> shares) {
  double sum = 0.0;
  for (const double p : shares)
    if (p > 0.0) sum -= p * std::log2(p);
  return sum;
}

double standard_deviation(std::span<const double> shares) {
  if (shares.empty()) return 0.0;
  const auto n = static_cast<double>(shares.size());
  const double mean = std::accumulate(shares.begin(), shares.end(), 0.0) / n;
  double sum = 0.0;
  for (const double p : shares) sum += (p - mean) * (p - mean);
  return std::sqrt(sum / n);
}

double overlap(std::span<const double> p, std::span<const double> q) {
  OPENMOE_CHECK(p.size() == q.size(), p.size(), " and ", q.size(), " experts");
  double sum = 0.0;
  for (std::size_t e = 0; e < p.size(); ++e) sum += std::min(p[e], q[e]);
  return sum;
}

double jensen_shannon(const CountTable& table) {
  std::vector<double> mean(static_cast<std::size_t>(table.experts), 0.0);
  double entropies = 0.0, rows = 0.0;
  for (std::int64_t r = 0; r < table.rows; ++r) {
    if (table.total(r) == 0) continue;
    const std::vector<double> shares = table.shares(r);
    for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += shares[e];
    entropies += entropy_bits(shares);
    rows += 1.0;
  }
  if (rows == 0.0) return 0.0;
  for (double& p : mean) p /= rows;
  return std::max(0.0, entropy_bits(mean) - entropies / rows);
}

std::int64_t favourite(std::span<const std::int64_t> counts) {
  const auto most = std::max_element(counts.begin(), counts.end());
  return most == counts.end() || *most == 0 ? -1 : most - counts.begin();
}

Information mutual_information(const CountTable& table) {
  std::vector<std::int64_t> column(static_cast<std::size_t>(table.experts), 0);
  std::int64_t total = 0, cells = 0, rows = 0;
  // sum n log2 n over cells and rows
  double cell_sum = 0.0, row_sum = 0.0;
  const auto n_log_n = [](std::int64_t n) {
    return n > 0 ? static_cast<double>(n) * std::log2(static_cast<double>(n)) : 0.0;
  };
  for (std::int64_t r = 0; r < table.rows; ++r) {
    const auto row = table.row(r);
    for (std::size_t e = 0; e < row.size(); ++e) {
      column[e] += row[e];
      cells += row[e] > 0 ? 1 : 0;
      cell_sum += n_log_n(row[e]);
    }
    const std::int64_t sum = table.total(r);
    rows += sum > 0 ? 1 : 0;
    row_sum += n_log_n(sum);
    total += sum;
  }
  Information result;
  if (total == 0) return result;
  const auto N = static_cast<double>(total);
  double column_sum = 0.0;
  std::int64_t columns = 0;
  for (const std::int64_t count : column) {
    column_sum += n_log_n(count);
    columns += count > 0 ? 1 : 0;
  }
  result.expert_entropy = std::log2(N) - column_sum / N;
  result.bits = std::max(0.0, (cell_sum - row_sum - column_sum) / N + std::log2(N));
  // Each of H(expert), H(key), H(expert, key) comes out too small by (cells - 1) / (2 N) nats.
  const double bias = static_cast<double>(cells - rows - columns + 1) / (2.0 * N * std::log(2.0));
  result.corrected_bits = std::clamp(result.bits - bias, 0.0, result.expert_entropy);
  return result;
}

Agreement compare_tokens(const TokenTable& a, const TokenTable& b, std::int64_t min_count) {
  Agreement result;
  double weights = 0.0, overlaps = 0.0, same = 0.0;
  for (std::size_t i = 0, j = 0; i < a.ids.size() && j < b.ids.size();) {
    if (a.ids[i] != b.ids[j]) {
      if (a.ids[i] < b.ids[j])
        ++i;
      else
        ++j;
      continue;
    }
    const auto row_a = static_cast<std::int64_t>(i++), row_b = static_cast<std::int64_t>(j++);
    const std::int64_t count_a = a.table.total(row_a), count_b = b.table.total(row_b);
    if (count_a < std::max<std::int64_t>(1, min_count) ||
        count_b < std::max<std::int64_t>(1, min_count))
      continue;
    const auto weight = static_cast<double>(count_a + count_b);
    weights += weight;
    overlaps += weight * overlap(a.table.shares(row_a), b.table.shares(row_b));
    same += favourite(a.table.row(row_a)) == favourite(b.table.row(row_b)) ? 1.0 : 0.0;
    ++result.ids;
  }
  if (result.ids == 0) return result;
  result.mean_overlap = overlaps / weights;
  result.same_favourite = same / static_cast<double>(result.ids);
  return result;
}

}  // namespace openmoe
