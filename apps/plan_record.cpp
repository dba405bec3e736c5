#include "apps/plan_record.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/base/check.h"

namespace openmoe {
namespace {

double real(std::int64_t count) {
  return static_cast<double>(count);
}

// Steps of a tree over n ranks, each with the latency of the slower link that it takes.
double latency_seconds(const Machine& machine, const GroupPlace& place) {
  const Link& link = place.nodes(machine) > 1 ? machine.inter_node : machine.intra_node;
  return link.latency * std::ceil(std::log2(real(place.ranks)));
}

}  // namespace

std::int64_t GroupPlace::per_node(const Machine& machine) const {
  return std::clamp<std::int64_t>(machine.ranks_per_node / stride, 1, ranks);
}

std::int64_t GroupPlace::nodes(const Machine& machine) const {
  const std::int64_t on_one = per_node(machine);
  return (ranks + on_one - 1) / on_one;
}

GroupPlace place_of(const std::string& group, const RehearsalGrid& grid) {
  if (group == "data") return {grid.dp * grid.ep, grid.tp};
  if (group == "expert") return {grid.ep, grid.tp};
  if (group == "replicas") return {grid.dp, grid.ep * grid.tp};
  if (group == "tensor") return {grid.tp, 1};
  OPENMOE_CHECK(group == "world", "group '", group, "' of a rehearsal");
  return {grid.ranks(), 1};
}

double sum_seconds(const Machine& machine, const GroupPlace& place, double bytes) {
  if (place.ranks == 1) return 0.0;
  const double m = real(place.per_node(machine)), k = real(place.nodes(machine));
  return 2.0 * (m - 1.0) / m * bytes / machine.intra_node.reached() +
         2.0 * (k - 1.0) / k * bytes / m / machine.inter_node.reached() +
         2.0 * latency_seconds(machine, place);
}

double exchange_seconds(const Machine& machine, const GroupPlace& place, double bytes) {
  if (place.ranks == 1) return 0.0;
  const double n = real(place.ranks), m = real(place.per_node(machine));
  return std::max(bytes * (m - 1.0) / (n - 1.0) / machine.intra_node.reached(),
                  bytes * (n - m) / (n - 1.0) / machine.inter_node.reached()) +
         latency_seconds(machine, place);
}

double PlanRecord::seconds_of(const OpWork& work) const {
  if (!machine_) return 0.0;
  const Speed& products = work.operands == DType::bf16 ? machine_->bf16 : machine_->f32;
  return std::max(work.flops / products.reached(), work.bytes / machine_->memory.reached());
}

double PlanRecord::seconds_of(const CollectiveCall& call) const {
  if (!machine_ || call.waits()) return 0.0;
  const GroupPlace place = place_of(call.group->name, grid_);
  if (call.is_all_to_all()) return exchange_seconds(*machine_, place, real(call.bytes));
  // The two halves of a sum; of the second the bytes of one piece are known.
  const std::string_view verb = call.verb;
  if (verb.starts_with("reduce_scatter"))
    return sum_seconds(*machine_, place, real(call.bytes)) / 2.0;
  if (verb.starts_with("all_gather"))
    return sum_seconds(*machine_, place, real(call.bytes * place.ranks)) / 2.0;
  return sum_seconds(*machine_, place, real(call.bytes));
}

void PlanRecord::on_work(const OpWork& work) {
  const double seconds = seconds_of(work) * real(times_);
  Part& part = current_part();
  part.seconds += seconds;
  part.flops += work.flops * real(times_);
  now_ += seconds;
}

void PlanRecord::end_collective(const CollectiveCall& call) {
  if (call.group->world_ranks.size() == 1) return;
  Collective& kind = find(call);
  kind.calls += times_;
  kind.bytes += call.bytes * times_;
  const double seconds = seconds_of(call) * real(times_);
  kind.seconds += seconds;
  if (call.starts()) {
    double& kind_end = call.is_all_to_all() ? rows_end_ : sums_end_;
    kind_end = std::max(kind_end, now_) + seconds;
    if (call.is_all_to_all()) row_ends_.push_back(kind_end);
    return;
  }
  double end = now_ + seconds;
  if (call.waits() && call.is_all_to_all()) {
    end = std::max(now_, row_ends_.front());
    row_ends_.pop_front();
  } else if (call.waits()) {
    end = std::max(now_, sums_end_);
  }
  exposed_ += end - now_;
  now_ = end;
}

PlanRecord::Collective& PlanRecord::find(const CollectiveCall& call) {
  for (Collective& kind : collectives_)
    if (kind.group == call.group->name && kind.verb == call.verb) return kind;
  return collectives_.emplace_back(
      Collective{call.group->name, call.verb, std::ssize(call.group->world_ranks), 0, 0, 0.0});
}

PlanRecord::Part& PlanRecord::current_part() {
  for (Part& part : parts_)
    if (part.name == part_) return part;
  return parts_.emplace_back(Part{part_, 0.0, 0.0});
}

}  // namespace openmoe
