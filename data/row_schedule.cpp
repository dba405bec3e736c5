#include "data/row_schedule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/check.h"
#include "core/base/rng.h"
#include "data/permutation.h"

namespace openmoe {
namespace {

constexpr std::int64_t kMaxExactPeriod = 4096;
constexpr std::int64_t kRoundedPeriod = 16384;
// Short periods repeat with little room for chance; several of them are joined.
constexpr std::int64_t kMinPeriod = 256;

// Rows of each source in the shortest period where all shares are whole numbers, or an empty list.
std::vector<std::int64_t> exact_quotas(const std::vector<double>& shares) {
  for (std::int64_t period = 1; period <= kMaxExactPeriod; ++period) {
    std::vector<std::int64_t> quotas;
    for (const double share : shares) {
      const double rows = share * static_cast<double>(period);
      const double whole = std::round(rows);
      if (whole < 1.0 || std::abs(rows - whole) > 1e-6) break;
      quotas.push_back(static_cast<std::int64_t>(whole));
    }
    if (quotas.size() != shares.size()) continue;
    const std::int64_t copies = (kMinPeriod + period - 1) / period;
    for (std::int64_t& quota : quotas) quota *= copies;
    return quotas;
  }
  return {};
}

std::vector<std::int64_t> rounded_quotas(const std::vector<double>& shares) {
  std::vector<std::int64_t> quotas;
  std::vector<std::pair<double, std::size_t>> remainders;
  for (std::size_t s = 0; s < shares.size(); ++s) {
    const double rows = shares[s] * static_cast<double>(kRoundedPeriod);
    quotas.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(rows)));
    remainders.emplace_back(rows - std::floor(rows), s);
  }
  std::sort(remainders.rbegin(), remainders.rend());
  std::int64_t missing =
      kRoundedPeriod - std::accumulate(quotas.begin(), quotas.end(), std::int64_t{0});
  for (std::size_t i = 0; missing > 0; ++i, --missing)
    ++quotas[remainders[i % remainders.size()].second];
  return quotas;
}

std::vector<double> shares_of(const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> shares;
  shares.reserve(weights.size());
  for (const double weight : weights) shares.push_back(weight / sum);
  return shares;
}

// Whole numbers that add up to `sum`, as near to `wanted` as can be, none negative.
void round_to_sum(const std::vector<double>& wanted, std::int64_t sum,
                  std::vector<std::int64_t>& rows) {
  rows.clear();
  for (const double value : wanted)
    rows.push_back(std::max<std::int64_t>(0, static_cast<std::int64_t>(std::floor(value))));
  std::int64_t missing = sum - std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const auto rest = [&](std::size_t s) { return wanted[s] - static_cast<double>(rows[s]); };
  for (; missing != 0; missing += missing > 0 ? -1 : 1) {
    std::size_t best = rows.size();
    for (std::size_t s = 0; s < rows.size(); ++s) {
      if (missing < 0 && rows[s] == 0) continue;
      if (best == rows.size() || (missing > 0 ? rest(s) > rest(best) : rest(s) < rest(best)))
        best = s;
    }
    rows[best] += missing > 0 ? 1 : -1;
  }
}

}  // namespace

FixedSchedule::FixedSchedule(const std::vector<double>& weights, std::uint64_t seed,
                             std::uint64_t stream)
    : seed_(seed), stream_(stream) {
  OPENMOE_CHECK(!weights.empty(), "a mixture without sources");
  const std::vector<double> shares = shares_of(weights);
  std::vector<std::int64_t> quotas = exact_quotas(shares);
  if (quotas.empty()) quotas = rounded_quotas(shares);
  first_slot_.push_back(0);
  for (const std::int64_t quota : quotas) first_slot_.push_back(first_slot_.back() + quota);
}

const std::vector<RowSchedule::Pick>& FixedSchedule::period_rows(std::int64_t number) {
  if (cached_period_ == number) return rows_;
  const Permutation order(
      period(), seed_,
      stream_id("sources of a period", stream_, static_cast<std::uint64_t>(number)));
  std::vector<std::int64_t> given(first_slot_.size() - 1, 0);
  rows_.clear();
  for (std::int64_t i = 0; i < period(); ++i) {
    const auto next = std::upper_bound(first_slot_.begin(), first_slot_.end(), order(i));
    const std::int64_t source = next - first_slot_.begin() - 1;
    rows_.push_back({source, given[static_cast<std::size_t>(source)]++});
  }
  cached_period_ = number;
  return rows_;
}

RowSchedule::Pick FixedSchedule::at(std::int64_t row) {
  const std::int64_t number = row / period();
  Pick pick = period_rows(number)[static_cast<std::size_t>(row % period())];
  pick.example += number * rows_per_period(pick.source);
  return pick;
}

std::int64_t FixedSchedule::rows_before(std::int64_t row, std::int64_t source) {
  const std::int64_t number = row / period();
  const auto& rows = period_rows(number);
  const auto end = rows.begin() + row % period();
  const auto within =
      std::count_if(rows.begin(), end, [&](const Pick& pick) { return pick.source == source; });
  return number * rows_per_period(source) + within;
}

BlendSchedule::BlendSchedule(const std::vector<double>& from, const std::vector<double>& to,
                             std::int64_t num_steps, std::int64_t rows_per_step, std::uint64_t seed,
                             std::uint64_t stream)
    : num_sources_(static_cast<std::int64_t>(from.size())),
      rows_per_step_(rows_per_step),
      seed_(seed),
      stream_(stream) {
  OPENMOE_CHECK(from.size() == to.size() && num_steps > 0, from.size(), " and ", to.size(),
                " weights, ", num_steps, " steps");
  const std::vector<double> first = shares_of(from);
  const std::vector<double> last = shares_of(to);
  totals_.assign(static_cast<std::size_t>((num_steps + 1) * num_sources_), 0);
  std::vector<double> owed(first.size(), 0.0);  // exact total minus rows given
  std::vector<std::int64_t> rows;
  for (std::int64_t step = 0; step < num_steps; ++step) {
    const double part = (static_cast<double>(step) + 0.5) / static_cast<double>(num_steps);
    for (std::size_t s = 0; s < owed.size(); ++s)
      owed[s] += static_cast<double>(rows_per_step) * ((1.0 - part) * first[s] + part * last[s]);
    round_to_sum(owed, rows_per_step, rows);
    for (std::size_t s = 0; s < owed.size(); ++s) {
      const std::size_t at = static_cast<std::size_t>(step * num_sources_) + s;
      totals_[at + owed.size()] = totals_[at] + rows[s];
      owed[s] -= static_cast<double>(rows[s]);
    }
  }
}

const std::vector<RowSchedule::Pick>& BlendSchedule::step_rows(std::int64_t step) {
  if (cached_step_ == step) return rows_;
  const Permutation order(
      rows_per_step_, seed_,
      stream_id("sources of a step", stream_, static_cast<std::uint64_t>(step)));
  std::vector<std::int64_t> given(static_cast<std::size_t>(num_sources_), 0);
  rows_.clear();
  for (std::int64_t i = 0; i < rows_per_step_; ++i) {
    std::int64_t slot = order(i);
    std::int64_t source = 0;
    for (; slot >= total(step + 1, source) - total(step, source); ++source)
      slot -= total(step + 1, source) - total(step, source);
    rows_.push_back({source, given[static_cast<std::size_t>(source)]++});
  }
  cached_step_ = step;
  return rows_;
}

RowSchedule::Pick BlendSchedule::at(std::int64_t row) {
  const std::int64_t step = row / rows_per_step_;
  Pick pick = step_rows(step)[static_cast<std::size_t>(row % rows_per_step_)];
  pick.example += total(step, pick.source);
  return pick;
}

std::int64_t BlendSchedule::rows_before(std::int64_t row, std::int64_t source) {
  const std::int64_t step = row / rows_per_step_;
  if (row % rows_per_step_ == 0) return total(step, source);
  const auto& rows = step_rows(step);
  const auto end = rows.begin() + row % rows_per_step_;
  return total(step, source) +
         std::count_if(rows.begin(), end, [&](const Pick& pick) { return pick.source == source; });
}

}  // namespace openmoe
