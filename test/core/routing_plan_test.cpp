// RoutingPlanner and LocalExchange on one rank: bounds, order, and decisions that no router may
// make.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/cpu/cpu_ops.h"
#include "core/moe/local_exchange.h"
#include "test/support/ranks.h"
#include "test/support/routing_cases.h"

namespace openmoe::test {
namespace {

// 2 groups of 4 tokens, 3 experts, 2 slots
constexpr ExchangeShape kShape{
    .num_tokens = 8, .num_experts = 3, .group_tokens = 4, .capacity = 2, .d_model = 1};

struct Plan {
  explicit Plan(const ExchangeShape& shape) : planner(shape, 1) {
    Arena dry;
    planner.allocate(dry, routing);
    row_token.resize(static_cast<std::size_t>(shape.max_sent()));
    assignment_row.resize(static_cast<std::size_t>(2 * shape.num_tokens));
  }
  void run(const std::vector<std::int32_t>& choice, const std::vector<std::int32_t>& slot) {
    planner.plan_sent(routing, choice, slot, row_token, assignment_row);
    row_token.resize(static_cast<std::size_t>(routing.num_sent));
  }
  RoutingPlanner planner;
  Routing routing;
  std::vector<std::int32_t> row_token, assignment_row;
};

}  // namespace

TEST_CASE("send order is by expert, group and slot") {
  Plan plan(kShape);
  // token:  0        1        2        3       |  4        5        6        7
  plan.run({0, 1, /**/ 0, 2, /**/ 0, 1, /**/ 2, 0, /**/ 1, 0, /**/ 2, 1, /**/ 2, 0, /**/ 2, 0},
           {0, 0, /**/ 1, 1, /**/ -1, 1, /**/ 0, -1, /**/ 0, 0, /**/ 0, 1, /**/ 1, 1, /**/ -1, -1});
  REQUIRE(plan.routing.num_sent == 12);
  REQUIRE(plan.routing.sent_per_expert == std::vector<std::int64_t>{4, 4, 4});
  // expert 0: group 0 tokens 0, 1, group 1 tokens 4, 6; expert 1: 0, 2, 4, 5; expert 2: 3, 1, 5, 6
  REQUIRE(plan.row_token == std::vector<std::int32_t>{0, 1, 4, 6, 0, 2, 4, 5, 3, 1, 5, 6});
  REQUIRE(plan.assignment_row ==
          std::vector<std::int32_t>{0, 4, 1, 9, -1, 5, 8, -1, 6, 2, 10, 7, 11, 3, -1, -1});
}

TEST_CASE("decisions that no router may make are refused") {
  const std::vector<std::int32_t> choice = {0, 1, 0, 2, 0, 1, 2, 0, 1, 0, 2, 1, 2, 0, 2, 0};
  const std::vector<std::int32_t> none(16, -1);
  const auto with = [](std::vector<std::int32_t> values,
                       std::initializer_list<std::pair<std::size_t, std::int32_t>> changes) {
    for (const auto& [at, value] : changes) values[at] = value;
    return values;
  };
  const auto refused = [](const std::function<void()>& action, const std::string& reason) {
    return message_of<std::logic_error>(action).find(reason) != std::string::npos;
  };
  Plan plan(kShape);
  REQUIRE(refused(
      [&] {
        plan.run(choice, with(none, {{0, 1}}));
      },
      "slot 1 of expert 0 where 1 assignments"));
  REQUIRE(refused(
      [&] {
        plan.run(choice, with(none, {{0, 0}, {2, 0}}));
      },
      "slot 0 of expert 0 is given to tokens 0 and 1"));
  REQUIRE(refused(
      [&] {
        plan.run(with(choice, {{4, 3}}), with(none, {{4, 0}}));
      },
      "expert 3 of 3"));
  REQUIRE(refused(
      [&] {
        plan.run(with(choice, {{4, -1}}), with(none, {{4, 0}}));
      },
      "expert -1 of 3"));
  plan.run(with(choice, {{4, 99}}),
           none);  // the choice of an assignment without a row does not matter
  REQUIRE(plan.routing.num_sent == 0);
}

TEST_CASE("bounds of the rows a rank sends and receives") {
  ExchangeShape shape{
      .num_tokens = 64, .num_experts = 8, .group_tokens = 16, .capacity = 3, .d_model = 1};
  REQUIRE(shape.max_sent() == 4 * 8 * 3);  // slots are fewer than assignments
  REQUIRE(RoutingPlanner(shape, 2).max_received() ==
          96);  // 2 sources x 4 groups x 4 experts x 3 slots
  REQUIRE(RoutingPlanner(shape, 8).max_received() == 96);
  shape.capacity = 100;
  REQUIRE(shape.max_sent() == 2 * 64);
  REQUIRE(RoutingPlanner(shape, 1).max_received() == 2 * 64);
  REQUIRE(RoutingPlanner(shape, 4).max_received() ==
          4 * 2 * 64);  // both choices of every token of 4 ranks
  REQUIRE(RoutingPlanner(shape, 8).max_received() ==
          8 * 64);  // one expert is chosen once per token
}

TEST_CASE("more rows than a shape allows are a fault that names the numbers") {
  const auto ops = make_cpu_ops();
  Arena arena(*ops, 1 << 16);
  const RoutingPlanner planner(kShape, 3);
  Routing routing;
  planner.allocate(arena, routing);
  routing.received_per_source = {4, 4, 4};
  planner.plan_received(routing);
  REQUIRE(routing.num_received == 12);
  routing.received_per_source = {4, 5, 4};
  const std::string message = message_of<RuntimeFault>([&] { planner.plan_received(routing); });
  REQUIRE(message.find("13 rows announced") != std::string::npos);
  REQUIRE(message.find("at most 12") != std::string::npos);
}

TEST_CASE("a shape that is not whole groups or whole shares of experts is refused") {
  ExchangeShape shape = kShape;
  REQUIRE_THROWS_AS(RoutingPlanner(shape, 2), std::logic_error);
  shape.num_tokens = 9;
  REQUIRE_THROWS_AS(RoutingPlanner(shape, 1), std::logic_error);
}

TEST_CASE("the local exchange moves nothing and keeps the order of every load") {
  const ExchangeShape shape{
      .num_tokens = 60, .num_experts = 5, .group_tokens = 20, .capacity = 6, .d_model = 2};
  LocalExchange exchange(shape);
  const auto ops = make_cpu_ops();
  for (const Load load :
       {Load::even, Load::random, Load::skewed, Load::all_to_one, Load::sparse, Load::nothing}) {
    Arena dry;
    Routing routing;
    exchange.allocate_routing(dry, routing);
    exchange.allocate_buffers(dry);
    Arena arena(*ops, dry.used_bytes() + 64);
    exchange.allocate_routing(arena, routing);
    Decision decision = make_decision(shape, load, 0, 17);
    exchange.plan(routing, host_view(decision.choice.data(), {60, 2}),
                  host_view(decision.slot.data(), {60, 2}));
    std::int64_t next = 0;
    for (std::int64_t e = 0; e < shape.num_experts; ++e) {
      REQUIRE(routing.expert_offsets[static_cast<std::size_t>(e)] == next);
      for (const ExpectedRow& row : rows_for(shape, decision, 0, e)) {
        REQUIRE(routing.row_token.as<std::int32_t>()[next] == row.token);
        REQUIRE(routing.assignment_row.as<std::int32_t>()[2 * row.token + row.choice] == next++);
      }
    }
    REQUIRE(routing.num_sent == next);
    REQUIRE(routing.num_received == next);
    REQUIRE((load == Load::nothing) == (next == 0));
    const auto kept = std::count_if(decision.slot.begin(), decision.slot.end(),
                                    [](std::int32_t s) { return s >= 0; });
    REQUIRE(kept == next);
  }
}

}  // namespace openmoe::test
