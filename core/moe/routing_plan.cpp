#include "core/moe/routing_plan.h"

#include <algorithm>
#include <limits>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {

RoutingPlanner::RoutingPlanner(const ExchangeShape& shape, std::int64_t ep)
    : shape_(shape), ep_(ep) {
  OPENMOE_CHECK(shape.num_tokens >= 0 && shape.num_experts > 0 && shape.group_tokens > 0 &&
                    shape.capacity > 0 && shape.d_model > 0,
                shape.num_tokens, " tokens, ", shape.num_experts, " experts, groups of ",
                shape.group_tokens, ", capacity ", shape.capacity, ", width ", shape.d_model);
  OPENMOE_CHECK(shape.num_tokens % shape.group_tokens == 0, shape.num_tokens,
                " tokens are not whole groups of ", shape.group_tokens);
  OPENMOE_CHECK(ep > 0 && shape.num_experts % ep == 0, shape.num_experts, " experts over ", ep,
                " ranks");
  OPENMOE_CHECK(2 * shape.num_tokens <= std::numeric_limits<std::int32_t>::max(), shape.num_tokens,
                " tokens: rows are numbered in 32 bits");
  const auto queues =
      static_cast<std::size_t>(shape.num_tokens / shape.group_tokens * shape.num_experts);
  queue_rows_.resize(queues);
  queue_begin_.resize(queues);
}

std::int64_t RoutingPlanner::max_rows_per_pair(std::int64_t experts) const {
  const std::int64_t assignments = shape_.num_tokens * std::min<std::int64_t>(2, experts);
  const std::int64_t slots = shape_.num_tokens / shape_.group_tokens * experts * shape_.capacity;
  return std::min(assignments, slots);
}

void RoutingPlanner::allocate(Arena& arena, Routing& routing) const {
  const auto make = [&](const char* name, DType dtype, const Shape& shape) {
    return arena.allocate(name, MemoryCategory::exchange, dtype, shape);
  };
  routing.row_token = make("row_token", DType::i32, {shape_.max_sent()});
  routing.assignment_row = make("assignment_row", DType::i32, {shape_.num_tokens, 2});
  routing.expert_offsets.assign(static_cast<std::size_t>(num_local_experts() + 1), 0);
  routing.sent_per_expert.assign(static_cast<std::size_t>(shape_.num_experts), 0);
  routing.received_per_source.assign(static_cast<std::size_t>(shape_.num_experts), 0);
}

void RoutingPlanner::plan_sent(Routing& routing, Tensor choice, Tensor slot) {
  plan_sent(routing, host_elements<std::int32_t>(choice), host_elements<std::int32_t>(slot),
            host_elements<std::int32_t>(routing.row_token),
            host_elements<std::int32_t>(routing.assignment_row));
}

void RoutingPlanner::plan_sent(Routing& routing, std::span<const std::int32_t> choice,
                               std::span<const std::int32_t> slot,
                               std::span<std::int32_t> row_token,
                               std::span<std::int32_t> assignment_row) {
  const auto assignments = static_cast<std::size_t>(2 * shape_.num_tokens);
  const std::int64_t num_experts = shape_.num_experts;
  const std::int64_t groups = shape_.num_tokens / shape_.group_tokens;
  OPENMOE_CHECK(choice.size() == assignments && slot.size() == assignments &&
                    assignment_row.size() == assignments,
                choice.size(), ", ", slot.size(), " and ", assignment_row.size(), " of ",
                assignments, " assignments");
  const auto queue_of = [&](std::size_t assignment) {
    const std::int64_t expert = choice[assignment];
    OPENMOE_CHECK(expert >= 0 && expert < num_experts, "expert ", expert, " of ", num_experts);
    const std::int64_t group = static_cast<std::int64_t>(assignment) / 2 / shape_.group_tokens;
    return static_cast<std::size_t>(expert * groups + group);
  };

  std::fill(queue_rows_.begin(), queue_rows_.end(), 0);
  for (std::size_t a = 0; a < assignments; ++a)
    if (slot[a] >= 0) ++queue_rows_[queue_of(a)];

  std::int64_t next_row = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const std::int64_t first_row = next_row;
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto queue = static_cast<std::size_t>(e * groups + g);
      queue_begin_[queue] = next_row;
      next_row += queue_rows_[queue];
    }
    routing.sent_per_expert[static_cast<std::size_t>(e)] = next_row - first_row;
  }
  routing.num_sent = next_row;
  OPENMOE_CHECK(next_row <= static_cast<std::int64_t>(row_token.size()), next_row,
                " kept assignments, room for ", row_token.size());

  std::fill_n(row_token.begin(), next_row, -1);
  for (std::size_t a = 0; a < assignments; ++a) {
    assignment_row[a] = -1;
    if (slot[a] < 0) continue;
    const std::size_t queue = queue_of(a);
    OPENMOE_CHECK(slot[a] < queue_rows_[queue], "slot ", slot[a], " of expert ", choice[a],
                  " where ", queue_rows_[queue], " assignments of the group are kept");
    const std::int64_t row = queue_begin_[queue] + slot[a];
    std::int32_t& token = row_token[static_cast<std::size_t>(row)];
    OPENMOE_CHECK(token == -1, "slot ", slot[a], " of expert ", choice[a], " is given to tokens ",
                  token, " and ", a / 2);
    token = static_cast<std::int32_t>(a / 2);
    assignment_row[a] = static_cast<std::int32_t>(row);
  }
}

void RoutingPlanner::plan_received(Routing& routing) const {
  const std::int64_t local_experts = num_local_experts();
  const auto offsets = routing.expert_offsets.data();
  std::int64_t next_row = 0;
  for (std::int64_t e = 0; e < local_experts; ++e) {
    offsets[e] = next_row;
    for (std::int64_t source = 0; source < ep_; ++source)
      next_row += routing.received_per_source[static_cast<std::size_t>(source * local_experts + e)];
  }
  offsets[local_experts] = next_row;
  routing.num_received = next_row;
  if (next_row > max_received())
    throw RuntimeFault(concat("token exchange: ", next_row, " rows announced for ", local_experts,
                              " local experts, but ", ep_, " ranks with ", shape_.num_tokens,
                              " tokens and capacity ", shape_.capacity, " send at most ",
                              max_received(), "; do all ranks run the same recipe?"));
}

}  // namespace openmoe
