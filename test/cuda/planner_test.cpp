// The planner of a device against that of the host.
#include "core/arena.h"
#include "core/moe/routing_plan.h"
#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

// Two different experts for each token, some of them without a slot.
void choose_experts(const ExchangeShape& shape, std::vector<std::int32_t>& choice,
                    std::vector<std::int32_t>& slot) {
  Rng rng(5, stream_id("choices"));
  const auto E = static_cast<std::uint64_t>(shape.num_experts);
  for (std::int64_t first = 0; first < shape.num_tokens; first += shape.group_tokens) {
    std::vector<std::int32_t> filled(static_cast<std::size_t>(E), 0);
    for (std::int64_t n = 0; n < shape.group_tokens; ++n) {
      const std::uint64_t one = rng.next_below(E), other = (one + 1 + rng.next_below(E - 1)) % E;
      for (const std::uint64_t expert : {one, other}) {
        choice.push_back(static_cast<std::int32_t>(expert));
        const bool kept = rng.next_below(8) != 0 && filled[expert] < shape.capacity;
        slot.push_back(kept ? filled[expert]++ : -1);
      }
    }
  }
}

struct Planned {
  std::vector<std::int32_t> row_token, assignment_row;
  std::vector<std::int64_t> sent_per_expert;
  std::int64_t num_sent = 0;
};

Planned plan(Ops& ops, RoutingPlanner& planner, const std::vector<std::int32_t>& choice,
             const std::vector<std::int32_t>& slot) {
  OpRun run(ops);
  Arena arena(ops, std::int64_t{8} << 20);
  Routing routing;
  planner.allocate(arena, routing);
  planner.allocate_buffers(arena);
  const Shape shape{planner.shape().num_tokens, 2};
  planner.plan_sent(routing, run.ints("choice", shape, choice), run.ints("slot", shape, slot));
  Planned result{run.read_ints(routing.row_token), run.read_ints(routing.assignment_row),
                 routing.sent_per_expert, routing.num_sent};
  result.row_token.resize(static_cast<std::size_t>(result.num_sent));
  return result;
}

}  // namespace

TEST_CASE("planner: rows are numbered as on the host", "[cuda]") {
  for (const ExchangeShape& shape :
       {ExchangeShape{300, 7, 300, 40, 4}, ExchangeShape{1024, 16, 64, 9, 4},
        ExchangeShape{12, 2, 1, 1, 4}}) {
    INFO(shape.num_tokens << " tokens, " << shape.num_experts << " experts, groups of "
                          << shape.group_tokens);
    std::vector<std::int32_t> choice, slot;
    choose_experts(shape, choice, slot);
    CpuOps cpu;
    RoutingPlanner on_host(shape, 1);
    const Planned wanted = plan(cpu, on_host, choice, slot);
    REQUIRE(wanted.num_sent > 0);
    const auto cuda = make_cuda_ops(0);
    const Planned found = plan(*cuda, *make_cuda_planner(*cuda, shape, 1), choice, slot);
    CHECK(found.num_sent == wanted.num_sent);
    CHECK(found.sent_per_expert == wanted.sent_per_expert);
    CHECK(found.row_token == wanted.row_token);
    CHECK(found.assignment_row == wanted.assignment_row);
  }
}
