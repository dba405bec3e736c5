#include "apps/step_trace.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "apps/agree.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kTracks[] = {"step", "layers",      "parts",
                                   "ops",  "collectives", "rows under way"};

// Sorted, and joined where they touch.
std::vector<TimeSpan> joined(std::vector<TimeSpan> spans) {
  std::sort(spans.begin(), spans.end());
  std::vector<TimeSpan> result;
  for (const TimeSpan& span : spans) {
    if (!result.empty() && span.first <= result.back().second)
      result.back().second = std::max(result.back().second, span.second);
    else
      result.push_back(span);
  }
  return result;
}

double total(const std::vector<TimeSpan>& spans) {
  double seconds = 0.0;
  for (const TimeSpan& span : spans) seconds += span.second - span.first;
  return seconds;
}

}  // namespace

double covered_seconds(std::vector<TimeSpan> spans) {
  return total(joined(std::move(spans)));
}

// |A outside B| = |A or B| - |B|
double exposed_seconds(const std::vector<TimeSpan>& spans, const std::vector<TimeSpan>& cover) {
  std::vector<TimeSpan> both = spans;
  both.insert(both.end(), cover.begin(), cover.end());
  return covered_seconds(std::move(both)) - covered_seconds(cover);
}

StepTrace::StepTrace(std::int64_t step, const std::string& folder, ProcessGrid& grid, Ops& ops,
                     RunObservers& observers)
    : step_(step), folder_(folder), grid_(grid), observers_(observers), clock_(ops.make_clock()) {
  on_root(grid.world(), [&] {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error)
      throw UserError("--trace " + folder + ": cannot create the folder: " + error.message());
  });
}

void StepTrace::begin_step() {
  // The step may be done again, after a rewind.
  events_.clear();
  begun_.clear();
  exchange_starts_.clear();
  layer_.clear();
  part_ = nullptr;
  // A device that still has work of the step before would be late.
  clock_->forget();
  clock_->seconds(0, clock_->mark());
  clock_->forget();
  grid_.world().barrier();
  clock_->mark();  // place 0
  observers_.ops.add_observer(*this);
  observers_.collectives.add(*this);
  is_attached_ = true;
}

void StepTrace::end_step() {
  close_part();
  close_layer();
  events_.push_back({concat("step ", step_), steps, 0, clock_->mark()});
  detach();
  for (Event& event : events_)
    event.time = {clock_->seconds(0, event.from), clock_->seconds(0, event.to)};
  end_ = events_.back().time.second;
}

void StepTrace::detach() {
  if (!std::exchange(is_attached_, false)) return;
  observers_.ops.remove_observer(*this);
  observers_.collectives.remove(*this);
}

void StepTrace::add(const char* op, double) {
  OPENMOE_CHECK(!begun_.empty(), op, " ended, but never began");
  events_.push_back({op, op_calls, begun_.back(), clock_->mark()});
  begun_.pop_back();
}

void StepTrace::close_part() {
  if (part_ != nullptr) events_.push_back({part_, parts, part_begin_, clock_->mark()});
  part_ = nullptr;
}

void StepTrace::close_layer() {
  if (!layer_.empty()) events_.push_back({layer_, layers, layer_begin_, clock_->mark()});
  layer_.clear();
}

void StepTrace::enter(const char* part) {
  if (part_ != nullptr && std::strcmp(part, part_) == 0) return;
  close_part();
  part_ = part;
  part_begin_ = clock_->mark();
}

void StepTrace::enter_layer(std::int64_t layer, Pass pass) {
  close_part();
  close_layer();
  layer_begin_ = clock_->mark();
  if (layer < 0) return;
  layer_ = concat(pass == Pass::forward ? "forward" : "backward", " of layer ", layer);
}

void StepTrace::end_collective(const CollectiveCall& call) {
  const std::int64_t end = clock_->mark();
  events_.push_back(
      {concat(call.group->name, ": ", call.verb), collectives, collective_begin_, end, call.bytes});
  // From the start of an exchange to the end of its wait. Waits come in the order of the starts.
  if (!std::string_view(call.group->name).starts_with("expert") || !call.is_all_to_all()) return;
  if (call.starts()) {
    exchange_starts_.push_back(collective_begin_);
    return;
  }
  std::int64_t begin = collective_begin_;
  if (call.waits() && !exchange_starts_.empty()) {
    begin = exchange_starts_.front();
    exchange_starts_.pop_front();
  }
  events_.push_back({call.group->name, rows_under_way, begin, end});
}

std::vector<TimeSpan> StepTrace::spans_of(Track track) const {
  std::vector<TimeSpan> spans;
  for (const Event& event : events_)
    if (event.track == track) spans.push_back(event.time);
  return spans;
}

std::string StepTrace::text(double exchange, double exposed) const {
  const int rank = grid_.world_rank();
  Json events = Json::array();
  events.push_back({{"name", "process_name"},
                    {"ph", "M"},
                    {"pid", rank},
                    {"args", {{"name", grid_.coordinates()}}}});
  for (int track = 0; track <= rows_under_way; ++track)
    events.push_back({{"name", "thread_name"},
                      {"ph", "M"},
                      {"pid", rank},
                      {"tid", track},
                      {"args", {{"name", kTracks[track]}}}});
  for (const Event& event : events_) {
    Json row = {{"name", event.name},
                {"cat", kTracks[event.track]},
                {"ph", "X"},
                {"pid", rank},
                {"tid", static_cast<int>(event.track)},
                {"ts", 1e6 * event.time.first},
                {"dur", 1e6 * (event.time.second - event.time.first)}};
    if (event.bytes >= 0) row["args"] = {{"bytes", event.bytes}};
    events.push_back(std::move(row));
  }
  const Json trace = {{"displayTimeUnit", "ms"},
                      {"otherData",
                       {{"step", step_},
                        {"rank", grid_.coordinates()},
                        {"step_ms", 1e3 * end_},
                        {"ops_ms", 1e3 * covered_seconds(spans_of(op_calls))},
                        {"exchange_ms", 1e3 * exchange},
                        {"exposed_exchange_ms", 1e3 * exposed},
                        {"exposed_share_of_exchange", exchange > 0.0 ? exposed / exchange : 0.0},
                        {"exposed_share_of_step", end_ > 0.0 ? exposed / end_ : 0.0}}},
                      {"traceEvents", std::move(events)}};
  return trace.dump() + "\n";
}

std::string StepTrace::write() {
  const std::vector<TimeSpan> exchanges = spans_of(rows_under_way);
  const double exchange = covered_seconds(exchanges);
  const double exposed = exposed_seconds(exchanges, spans_of(op_calls));
  on_every_rank(grid_.world(), [&] {
    char name[32];
    std::snprintf(name, sizeof name, "/rank-%05d.json", grid_.world_rank());
    replace_file(folder_ + name, text(exchange, exposed));
  });
  double sums[] = {exchange, exposed, end_};
  grid_.world().all_reduce_sum(std::span<double>(sums));
  const double ranks = grid_.world().size();
  char line[240];
  std::snprintf(
      line, sizeof line,
      "trace of step %lld in %s: exchange of tokens %.2f ms of a step of %.2f ms, %.2f ms "
      "of it exposed = %.1f%% of the exchange, %.1f%% of the step (means of %d ranks)",
      static_cast<long long>(step_), folder_.c_str(), 1e3 * sums[0] / ranks, 1e3 * sums[2] / ranks,
      1e3 * sums[1] / ranks, sums[0] > 0.0 ? 100.0 * sums[1] / sums[0] : 0.0,
      100.0 * sums[1] / sums[2], grid_.world().size());
  return line;
}

}  // namespace openmoe
