#include "core/op_profile.h"

#include <algorithm>
#include <cstdio>

#include "core/base/check.h"

namespace openmoe {
namespace {

void add_to(OpProfile::Entry& sum, const char* name, const OpProfile::Entry& entry) {
  sum.op = name;
  sum.calls += entry.calls;
  sum.seconds += entry.seconds;
  sum.flops += entry.flops;
  sum.product_seconds += entry.product_seconds;
}

std::vector<OpProfile::Entry> by_time(const std::map<std::string, OpProfile::Entry>& sums) {
  std::vector<OpProfile::Entry> sorted;
  sorted.reserve(sums.size());
  for (const auto& [name, entry] : sums) sorted.push_back(entry);
  std::sort(sorted.begin(), sorted.end(), [](const OpProfile::Entry& a, const OpProfile::Entry& b) {
    return a.seconds > b.seconds;
  });
  return sorted;
}

}  // namespace

void OpProfile::begin() {
  if (begun_.empty() && calls_.size() >= kMostUntimedCalls) collect();
  begun_.push_back(clock_->mark());
}

void OpProfile::add(const char* op, double flops) {
  OPENMOE_CHECK(!begun_.empty(), op, " ended, but never began");
  calls_.push_back({part_, op, flops, begun_.back(), clock_->mark()});
  begun_.pop_back();
}

void OpProfile::collect() {
  for (const Call& call : calls_) {
    const double seconds = clock_->seconds(call.from, call.to);
    Entry& entry = entries_[{call.part, call.op}];
    entry.calls += 1;
    entry.seconds += seconds;
    entry.flops += call.flops;
    if (call.flops > 0.0) entry.product_seconds += seconds;
  }
  calls_.clear();
  if (begun_.empty()) clock_->forget();
}

double OpProfile::total_seconds() {
  collect();
  double total = 0.0;
  for (const auto& [name, entry] : entries_) total += entry.seconds;
  return total;
}

std::vector<OpProfile::Entry> OpProfile::entries() {
  collect();
  std::map<std::string, Entry> sums;
  for (const auto& [name, entry] : entries_) add_to(sums[name.second], name.second, entry);
  return by_time(sums);
}

std::vector<OpProfile::Entry> OpProfile::parts() {
  collect();
  std::map<std::string, Entry> sums;
  for (const auto& [name, entry] : entries_) add_to(sums[name.first], name.first, entry);
  return by_time(sums);
}

std::string OpProfile::table(std::int64_t num_steps, double step_seconds, double peak_flops) {
  const auto steps = static_cast<double>(std::max<std::int64_t>(1, num_steps));
  char line[160];
  std::snprintf(line, sizeof line, "%-44s %7s %10s %7s %9s %7s\n", "op", "calls", "ms/step",
                "share", "GFLOP/s", "% peak");
  std::string text = line;
  const auto add_line = [&](const std::string& name, double calls, double seconds, double flops) {
    std::snprintf(line, sizeof line, "%-44s %7.0f %10.2f %6.1f%%", name.c_str(), calls / steps,
                  1e3 * seconds / steps, 100.0 * seconds / (steps * step_seconds));
    text += line;
    if (flops > 0.0) {
      std::snprintf(line, sizeof line, " %9.1f", flops / seconds / 1e9);
      text += line;
      if (peak_flops > 0.0) {
        std::snprintf(line, sizeof line, " %6.1f%%", 100.0 * flops / seconds / peak_flops);
        text += line;
      }
    }
    text += '\n';
  };
  double flops = 0.0, product_seconds = 0.0;
  for (const Entry& entry : entries()) {
    add_line(entry.op, static_cast<double>(entry.calls), entry.seconds, entry.flops);
    flops += entry.flops;
    product_seconds += entry.product_seconds;
  }
  add_line("outside ops", 0.0, steps * step_seconds - total_seconds(), 0.0);
  text += "by part of the network\n";
  for (const Entry& entry : parts())
    add_line("  " + entry.op, static_cast<double>(entry.calls), entry.seconds, entry.flops);
  add_line("neither products nor attention", 0.0, steps * step_seconds - product_seconds, 0.0);
  add_line("step", 0.0, steps * step_seconds, flops);
  return text;
}

}  // namespace openmoe
