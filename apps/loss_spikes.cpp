#include "apps/loss_spikes.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace openmoe {
namespace {

// A loss that hardly moves has no deviation to speak of; this share of the mean is the least that
// counts as one.
constexpr double kLeastDeviation = 1e-3;

}  // namespace

void LossSpikes::enter_phase(std::int64_t phase) {
  if (phase == phase_) return;
  phase_ = phase;
  window_.clear();
}

double LossSpikes::z_score(double loss) const {
  if (window_.size() < static_cast<std::size_t>(run_.spike_window)) return 0.0;
  const auto count = static_cast<double>(window_.size());
  double mean = 0.0, squares = 0.0;
  for (const double value : window_) mean += value / count;
  for (const double value : window_) squares += (value - mean) * (value - mean) / (count - 1.0);
  const double deviation = std::max(std::sqrt(squares), kLeastDeviation * std::abs(mean));
  return deviation > 0.0 ? (loss - mean) / deviation : 0.0;
}

bool LossSpikes::is_spike(double loss) const {
  return run_.on_spike != OnSpike::ignore && z_score(loss) > run_.spike_z;
}

void LossSpikes::accept(double loss) {
  window_.push_back(loss);
  if (window_.size() > static_cast<std::size_t>(run_.spike_window)) window_.pop_front();
}

void LossSpikes::leave_out_until(std::int64_t step) {
  for (std::int64_t s = std::max<std::int64_t>(0, step - run_.spike_batches + 1); s <= step; ++s)
    left_out_.insert(s);
}

std::string LossSpikes::state() const {
  return nlohmann::json({{"phase", phase_}, {"losses", window_}, {"left_out", left_out_}}).dump();
}

void LossSpikes::restore(const std::string& state) {
  phase_ = -1;
  window_.clear();
  if (state.empty()) return;
  const auto json = nlohmann::json::parse(state);
  phase_ = json.at("phase").get<std::int64_t>();
  for (const double loss : json.at("losses")) accept(loss);
  for (const std::int64_t step : json.at("left_out")) left_out_.insert(step);
}

}  // namespace openmoe
