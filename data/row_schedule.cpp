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

}  // namespace

RowSchedule::RowSchedule(const std::vector<double>& weights, std::uint64_t seed,
                         std::uint64_t stream)
    : seed_(seed), stream_(stream) {
  OPENMOE_CHECK(!weights.empty(), "a mixture without sources");
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> shares;
  for (const double weight : weights) shares.push_back(weight / sum);
  std::vector<std::int64_t> quotas = exact_quotas(shares);
  if (quotas.empty()) quotas = rounded_quotas(shares);
  first_slot_.push_back(0);
  for (const std::int64_t quota : quotas) first_slot_.push_back(first_slot_.back() + quota);
}

RowSchedule::Pick RowSchedule::at(std::int64_t row) const {
  const std::int64_t number = row / period();
  const Permutation order(
      period(), seed_,
      stream_id("sources of a period", stream_, static_cast<std::uint64_t>(number)));
  const std::int64_t slot = order(row % period());
  const auto next = std::upper_bound(first_slot_.begin(), first_slot_.end(), slot);
  const std::int64_t source = next - first_slot_.begin() - 1;
  return {source,
          number * rows_per_period(source) + slot - first_slot_[static_cast<std::size_t>(source)]};
}

std::int64_t RowSchedule::rows_before(std::int64_t row, std::int64_t source) const {
  const std::int64_t number = row / period();
  const Permutation order(
      period(), seed_,
      stream_id("sources of a period", stream_, static_cast<std::uint64_t>(number)));
  const auto s = static_cast<std::size_t>(source);
  std::int64_t rows = number * rows_per_period(source);
  for (std::int64_t i = 0; i < row % period(); ++i) {
    const std::int64_t slot = order(i);
    if (slot >= first_slot_[s] && slot < first_slot_[s + 1]) ++rows;
  }
  return rows;
}

}  // namespace openmoe
