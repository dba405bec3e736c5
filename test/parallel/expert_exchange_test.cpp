// ExpertExchange on every number of ranks: each received row is checked against a search over what
// all ranks decided.
#include <algorithm>
#include <vector>

#include "core/base/rng.h"
#include "core/config/enum_names.h"
#include "core/cpu/cpu_ops.h"
#include "core/moe/local_exchange.h"
#include "parallel/expert_exchange.h"
#include "parallel/process_grid.h"
#include "test/support/allocation_count.h"
#include "test/support/ranks.h"
#include "test/support/routing_cases.h"
#include "test/support/whole_exchange.h"

namespace openmoe::test {
namespace {

constexpr Load kAllLoads[] = {Load::even,   Load::random,        Load::skewed, Load::all_to_one,
                              Load::sparse, Load::one_rank_only, Load::nothing};

// Shapes for `ep` ranks: several and one expert per rank, with and without drops, one and several
// groups.
std::vector<ExchangeShape> shapes(std::int64_t ep) {
  return {
      {.num_tokens = 24, .num_experts = 12, .group_tokens = 8, .capacity = 3, .d_model = 5},
      {.num_tokens = 40, .num_experts = 2 * ep, .group_tokens = 20, .capacity = 40, .d_model = 4},
      {.num_tokens = 16,
       .num_experts = std::max<std::int64_t>(ep, 2),
       .group_tokens = 16,
       .capacity = 5,
       .d_model = 7}};
}

// One exchange with its memory, and what all ranks of its group decided.
class Setup {
 public:
  Setup(const ExchangeShape& shape, Communicator& group, Load load, std::uint64_t seed,
        const ExchangeRoute& route = {})
      : shape_(shape),
        group_(group),
        ops_(make_cpu_ops()),
        exchange(*ops_, std::make_unique<RoutingPlanner>(shape, group.size()), group, route) {
    Arena dry;
    allocate(dry);
    arena_ = std::make_unique<Arena>(*ops_, dry.used_bytes());
    allocate(*arena_);
    redo(load, seed);
  }

  // Another decision on the same exchange.
  void redo(Load load, std::uint64_t seed) {
    decisions.clear();
    for (int r = 0; r < group_.size(); ++r)
      decisions.push_back(make_decision(shape_, load, r, seed));
    Decision& own = decisions[static_cast<std::size_t>(group_.rank_in_group())];
    const Shape pairs{shape_.num_tokens, 2};
    choice = host_view(own.choice.data(), pairs);
    slot = host_view(own.slot.data(), pairs);
  }

  // What this rank sends, in order, and what its experts receive, in order.
  std::vector<ExpectedRow> expected_sent() const {
    const int self = group_.rank_in_group();
    std::vector<ExpectedRow> rows;
    for (std::int64_t e = 0; e < shape_.num_experts; ++e)
      for (const ExpectedRow& row :
           rows_for(shape_, decisions[static_cast<std::size_t>(self)], self, e))
        rows.push_back(row);
    return rows;
  }
  std::vector<ExpectedRow> expected_received(std::int64_t local_expert) const {
    const std::int64_t expert =
        group_.rank_in_group() * exchange.num_local_experts() + local_expert;
    std::vector<ExpectedRow> rows;
    for (int r = 0; r < group_.size(); ++r)
      for (const ExpectedRow& row :
           rows_for(shape_, decisions[static_cast<std::size_t>(r)], r, expert))
        rows.push_back(row);
    return rows;
  }

 private:
  void allocate(Arena& arena) {
    exchange.allocate_routing(arena, routing);
    exchange.allocate_buffers(arena);
    const auto make = [&](const char* name, std::int64_t rows) {
      return arena.allocate(name, MemoryCategory::exchange, DType::f32, {rows, shape_.d_model});
    };
    sent = make("sent", exchange.max_sent());
    received = make("received", exchange.max_received());
    returned = make("returned", exchange.max_sent());
  }

  ExchangeShape shape_;
  Communicator& group_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Arena> arena_;

 public:
  ExpertExchange exchange;
  Routing routing;
  Tensor sent, received, returned, choice, slot;
  std::vector<Decision> decisions;
};

void fill(Tensor tensor, float value) {
  std::fill_n(tensor.as<float>(), tensor.num_elements(), value);
}

// The payload of a row says where it comes from; the columns beyond repeat with a tilt.
float stamp(const ExpectedRow& row, std::int64_t column) {
  const std::int64_t parts[] = {row.source, row.token, row.expert, row.choice};
  return static_cast<float>(parts[column % 4] + 1000 * (column / 4));
}

bool row_holds(const Tensor& tensor, std::int64_t row, const ExpectedRow& expected) {
  const float* values = tensor.as<float>() + row * tensor.size(1);
  for (std::int64_t c = 0; c < tensor.size(1); ++c)
    if (values[c] != stamp(expected, c)) return false;
  return true;
}

void write_row(const Tensor& tensor, std::int64_t row, const ExpectedRow& content) {
  for (std::int64_t c = 0; c < tensor.size(1); ++c)
    tensor.as<float>()[row * tensor.size(1) + c] = stamp(content, c);
}

bool all_equal(const Tensor& rows, float value) {
  const float* values = rows.as<float>();
  return std::all_of(values, values + rows.num_elements(), [value](float v) { return v == value; });
}

bool handle_is_right(const Setup& s, const std::vector<ExpectedRow>& sent) {
  const Routing& routing = s.routing;
  if (routing.num_sent != static_cast<std::int64_t>(sent.size()) ||
      routing.num_sent > s.exchange.max_sent())
    return false;
  std::vector<std::int32_t> assignment_row(
      static_cast<std::size_t>(routing.assignment_row.num_elements()), -1);
  for (std::size_t i = 0; i < sent.size(); ++i) {
    if (routing.row_token.as<std::int32_t>()[i] != sent[i].token) return false;
    assignment_row[static_cast<std::size_t>(2 * sent[i].token + sent[i].choice)] =
        static_cast<std::int32_t>(i);
  }
  return std::equal(assignment_row.begin(), assignment_row.end(),
                    routing.assignment_row.as<std::int32_t>());
}

// Rows in `received` are what the experts of this rank expect, with the offsets of the handle.
bool received_is_right(const Setup& s, const Tensor& received) {
  const std::int64_t* offsets = s.routing.expert_offsets.data();
  std::int64_t next = 0;
  for (std::int64_t e = 0; e < s.exchange.num_local_experts(); ++e) {
    if (offsets[e] != next) return false;
    for (const ExpectedRow& row : s.expected_received(e))
      if (!row_holds(received, next++, row)) return false;
  }
  return offsets[s.exchange.num_local_experts()] == next && s.routing.num_received == next &&
         next <= s.exchange.max_received();
}

double inner_product(const Tensor& a, const Tensor& b, std::int64_t rows) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < rows * a.size(1); ++i)
    sum += static_cast<double>(a.as<float>()[i]) * static_cast<double>(b.as<float>()[i]);
  return sum;
}

void fill_random(Tensor tensor, std::uint64_t seed, int rank) {
  const Rng rng(seed, stream_id("payload", static_cast<std::uint64_t>(rank)));
  for (std::int64_t i = 0; i < tensor.num_elements(); ++i)
    tensor.as<float>()[i] = static_cast<float>(rng.normal_at(static_cast<std::uint64_t>(i)));
}

// Every kind of exchange, every size of node that divides the group, and every number of parts.
std::vector<ExchangeRoute> routes(std::int64_t ep, std::int64_t local_experts) {
  std::vector<ExchangeRoute> all;
  for (std::int64_t parts = 1; parts <= local_experts; ++parts) {
    all.push_back({ExchangeKind::direct, 1, parts});
    all.push_back({ExchangeKind::fixed_capacity, 1, parts});
    for (std::int64_t n = 1; n <= ep; ++n)
      if (ep % n == 0) all.push_back({ExchangeKind::two_level, n, parts});
  }
  return all;
}

// The expert groups of every ep that the world allows.
template <typename Body>
void for_each_grid(const Body& body) {
  Communicator& world = mpi().world();
  for (std::int64_t ep = 1; ep <= world.size(); ++ep) {
    if (world.size() % ep != 0) continue;
    INFO("ep " << ep);
    ProcessGrid grid(world, ep, 1);
    for (const ExchangeShape& shape : shapes(ep)) {
      for (const ExchangeRoute& route : routes(ep, shape.num_experts / ep)) {
        INFO("experts " << shape.num_experts << ", capacity " << shape.capacity << ", "
                        << enum_name(route.kind) << ", nodes of " << route.ranks_per_node << ", "
                        << route.num_parts << " parts");
        body(grid, shape, route);
      }
    }
  }
}

}  // namespace

TEST_CASE("hosts have equal stretches of ranks, or not") {
  CHECK(equal_stretch({"a"}) == 1);
  CHECK(equal_stretch({"a", "a", "a"}) == 3);
  CHECK(equal_stretch({"a", "b", "c"}) == 1);
  CHECK(equal_stretch({"a", "a", "b", "b"}) == 2);
  CHECK(equal_stretch({"a", "a", "b"}) == 0);
  CHECK(equal_stretch({"a", "b", "b"}) == 0);
  CHECK(equal_stretch({"a", "a", "b", "c"}) == 0);
  // One host has two stretches.
  CHECK(equal_stretch({"a", "b", "a", "b"}) == 0);
  CHECK(equal_stretch({"a", "a", "b", "b", "a", "a"}) == 0);
}

TEST_CASE("every row reaches its expert in the promised order and comes back") {
  for_each_grid([](ProcessGrid& grid, const ExchangeShape& shape, const ExchangeRoute& route) {
    for (const Load load : kAllLoads) {
      INFO("load " << static_cast<int>(load));
      Setup s(shape, grid.expert(), load, 7, route);
      s.exchange.plan(s.routing, s.choice, s.slot);
      const std::vector<ExpectedRow> sent = s.expected_sent();
      REQUIRE_ALL_RANKS(handle_is_right(s, sent));
      fill(s.sent, -1.0f);
      fill(s.received, -2.0f);
      fill(s.returned, -3.0f);
      for (std::size_t i = 0; i < sent.size(); ++i)
        write_row(s.sent, static_cast<std::int64_t>(i), sent[i]);

      const Tensor received = dispatch(s.exchange, s.sent, s.received, s.routing);
      REQUIRE_ALL_RANKS(received_is_right(s, received));
      const bool moved = received.data == s.received.data;
      REQUIRE_ALL_RANKS(moved == (grid.ep() > 1));
      REQUIRE_ALL_RANKS(
          !moved || all_equal(s.received.rows(s.routing.num_received, s.received.size(0)), -2.0f));

      const Tensor returned = combine(s.exchange, received, s.returned, s.routing);
      bool came_back = true;
      for (std::size_t i = 0; i < sent.size(); ++i)
        came_back = came_back && row_holds(returned, static_cast<std::int64_t>(i), sent[i]);
      REQUIRE_ALL_RANKS(came_back);
      REQUIRE_ALL_RANKS(!moved ||
                        all_equal(s.returned.rows(s.routing.num_sent, s.returned.size(0)), -3.0f));
    }
  });
}

// As the model does it: a part is changed where it arrived and goes back while later parts are
// still on their way, in the backward into the rows that it was sent from.
TEST_CASE("parts are computed and returned one after the other") {
  for_each_grid([](ProcessGrid& grid, const ExchangeShape& shape, const ExchangeRoute& route) {
    if (grid.ep() == 1) return;
    for (const Load load : kAllLoads) {
      Setup s(shape, grid.expert(), load, 17, route);
      s.exchange.plan(s.routing, s.choice, s.slot);
      fill_random(s.sent, 3, grid.world_rank());
      const std::vector<float> before(s.sent.as<float>(),
                                      s.sent.as<float>() + s.routing.num_sent * shape.d_model);
      const std::int64_t parts = s.exchange.num_parts();
      REQUIRE(parts == route.num_parts);
      REQUIRE(s.exchange.part_begin(parts) == s.exchange.num_local_experts());
      for (std::int64_t p = 0; p < parts; ++p)
        s.exchange.start_dispatch(s.sent, s.received, s.routing, p);
      const auto* const offsets = s.routing.expert_offsets.data();
      for (std::int64_t p = 0; p < parts; ++p) {
        s.exchange.finish_dispatch(s.sent, s.received, p);
        // As what expert e of this rank makes of a row: (e + 2) x
        for (std::int64_t e = s.exchange.part_begin(p); e < s.exchange.part_begin(p + 1); ++e)
          for (std::int64_t i = offsets[e] * shape.d_model; i < offsets[e + 1] * shape.d_model; ++i)
            s.received.as<float>()[i] *= static_cast<float>(e + 2);
        s.exchange.advance();
        s.exchange.start_combine(s.received, s.sent, s.routing, p);
      }
      for (std::int64_t p = 0; p < parts; ++p) s.exchange.finish_combine(s.sent, p);
      const std::vector<ExpectedRow> rows = s.expected_sent();
      bool is_right = true;
      for (std::size_t i = 0; i < before.size(); ++i) {
        const std::int64_t expert = rows[i / static_cast<std::size_t>(shape.d_model)].expert;
        const auto factor = static_cast<float>(expert % s.exchange.num_local_experts() + 2);
        is_right = is_right && s.sent.as<float>()[i] == factor * before[i];
      }
      REQUIRE_ALL_RANKS(is_right);
    }
  });
}

TEST_CASE("dispatch and combine are each other's adjoint") {
  for_each_grid([](ProcessGrid& grid, const ExchangeShape& shape, const ExchangeRoute& route) {
    for (const Load load : kAllLoads) {
      Setup s(shape, grid.expert(), load, 11, route);
      s.exchange.plan(s.routing, s.choice, s.slot);
      Setup other(shape, grid.expert(), load, 11, route);
      fill_random(s.sent, 1, grid.world_rank());
      fill_random(other.received, 2, grid.world_rank());
      // <dispatch(x), r> and <x, combine(r)>, over the ranks of the group
      const Tensor dispatched = dispatch(s.exchange, s.sent, s.received, s.routing);
      const Tensor combined = combine(s.exchange, other.received, other.returned, s.routing);
      double products[] = {inner_product(dispatched, other.received, s.routing.num_received),
                           inner_product(s.sent, combined, s.routing.num_sent)};
      grid.expert().all_reduce_sum(std::span<double>(products));
      REQUIRE_ALL_RANKS(products[0] == Approx(products[1]).epsilon(1e-12).margin(1e-12));
      REQUIRE_ALL_RANKS(s.routing.num_sent == 0 || products[0] != 0.0);
    }
  });
}

TEST_CASE("two handles of one exchange do not disturb each other") {
  for_each_grid([](ProcessGrid& grid, const ExchangeShape& shape, const ExchangeRoute& route) {
    Setup first(shape, grid.expert(), Load::random, 3, route);
    Setup second(shape, grid.expert(), Load::skewed, 4, route);
    first.exchange.plan(first.routing, first.choice, first.slot);
    // The same exchange plans and moves another layer's rows in between.
    first.exchange.plan(second.routing, second.choice, second.slot);
    dispatch(first.exchange, second.sent, second.received, second.routing);
    const std::vector<ExpectedRow> sent = first.expected_sent();
    for (std::size_t i = 0; i < sent.size(); ++i)
      write_row(first.sent, static_cast<std::int64_t>(i), sent[i]);
    REQUIRE_ALL_RANKS(received_is_right(
        first, dispatch(first.exchange, first.sent, first.received, first.routing)));
  });
}

TEST_CASE("rows of large blocks survive the copy by several threads") {
  Communicator& world = mpi().world();
  const ExchangeShape shape{.num_tokens = 2048,
                            .num_experts = 2 * world.size(),
                            .group_tokens = 512,
                            .capacity = 160,
                            .d_model = 96};
  for (const Load load : {Load::random, Load::skewed, Load::all_to_one}) {
    Setup s(shape, world, load, 5);
    s.exchange.plan(s.routing, s.choice, s.slot);
    const std::vector<ExpectedRow> sent = s.expected_sent();
    for (std::size_t i = 0; i < sent.size(); ++i)
      write_row(s.sent, static_cast<std::int64_t>(i), sent[i]);
    const Tensor received = dispatch(s.exchange, s.sent, s.received, s.routing);
    REQUIRE_ALL_RANKS(received_is_right(s, received));
    const Tensor returned = combine(s.exchange, received, s.returned, s.routing);
    REQUIRE_ALL_RANKS(std::equal(s.sent.as<float>(),
                                 s.sent.as<float>() + s.routing.num_sent * shape.d_model,
                                 returned.as<float>()));
  }
}

TEST_CASE("a step allocates nothing after the first") {
  Communicator& world = mpi().world();
  const ExchangeShape shape = shapes(world.size())[0];
  Setup s(shape, world, Load::random, 9);
  std::int64_t counted = 0;
  for (int step = 0; step < 4; ++step) {
    s.redo(step % 2 == 0 ? Load::random : Load::skewed, 20 + static_cast<std::uint64_t>(step));
    const std::int64_t before = g_num_allocations;
    s.exchange.plan(s.routing, s.choice, s.slot);
    const Tensor received = dispatch(s.exchange, s.sent, s.received, s.routing);
    combine(s.exchange, received, s.returned, s.routing);
    counted = g_num_allocations - before;
    INFO("step " << step << ": " << counted << " allocations");
    REQUIRE_ALL_RANKS(step == 0 || counted == 0);
  }
}

TEST_CASE("on one rank it does what LocalExchange does") {
  const auto self = make_self_communicator();
  const ExchangeShape shape{
      .num_tokens = 24, .num_experts = 6, .group_tokens = 8, .capacity = 3, .d_model = 5};
  for (const Load load : kAllLoads) {
    Setup s(shape, *self, load, 13);
    s.exchange.plan(s.routing, s.choice, s.slot);
    LocalExchange local(shape);
    REQUIRE(local.num_local_experts() == s.exchange.num_local_experts());
    REQUIRE(local.max_sent() == s.exchange.max_sent());
    REQUIRE(local.max_received() == s.exchange.max_received());
    const auto ops = make_cpu_ops();
    Arena arena(*ops, 1 << 16);
    Routing routing;
    local.allocate_routing(arena, routing);
    local.plan(routing, s.choice, s.slot);
    REQUIRE(routing.num_sent == s.routing.num_sent);
    REQUIRE(routing.num_received == s.routing.num_received);
    REQUIRE(routing.sent_per_expert == s.routing.sent_per_expert);
    REQUIRE(routing.received_per_source == s.routing.received_per_source);
    const auto same = [](const Tensor& a, const Tensor& b, std::int64_t n) {
      return std::equal(static_cast<const char*>(a.data),
                        static_cast<const char*>(a.data) + n * size_of(a.dtype),
                        static_cast<const char*>(b.data));
    };
    REQUIRE(same(routing.row_token, s.routing.row_token, routing.num_sent));
    REQUIRE(same(routing.assignment_row, s.routing.assignment_row, 2 * shape.num_tokens));
    REQUIRE(routing.expert_offsets == s.routing.expert_offsets);
    REQUIRE(dispatch(s.exchange, s.sent, s.received, s.routing).data == s.sent.data);
    REQUIRE(dispatch(local, s.sent, s.received, routing).data == s.sent.data);
    REQUIRE(combine(s.exchange, s.received, s.returned, s.routing).data == s.received.data);
    REQUIRE(combine(local, s.received, s.returned, routing).data == s.received.data);
  }
}

TEST_CASE("buffers that are too small are refused before any row moves") {
  Communicator& world = mpi().world();
  if (world.size() == 1) return;
  Setup s(shapes(world.size())[0], world, Load::even, 1);
  s.exchange.plan(s.routing, s.choice, s.slot);
  REQUIRE_ALL_RANKS(s.routing.num_received > 0 && s.routing.num_sent > 0);
  REQUIRE_THROWS_AS(
      dispatch(s.exchange, s.sent, s.received.rows(0, s.routing.num_received - 1), s.routing),
      std::logic_error);
  REQUIRE_THROWS_AS(
      combine(s.exchange, s.received, s.returned.rows(0, s.routing.num_sent - 1), s.routing),
      std::logic_error);
  REQUIRE_THROWS_AS(dispatch(s.exchange, s.sent, s.sent, s.routing), std::logic_error);
}

TEST_CASE("the route follows the recipe, and the hosts where it says auto") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  ParallelConfig config;  // all ranks are on one host here
  REQUIRE_ALL_RANKS(choose_route(config, world).kind == ExchangeKind::direct);
  config.exchange = ExchangeKind::fixed_capacity;
  REQUIRE_ALL_RANKS(choose_route(config, world).kind == ExchangeKind::fixed_capacity);
  config.exchange = ExchangeKind::two_level;
  REQUIRE_ALL_RANKS(choose_route(config, world).ranks_per_node == size);
  config.exchange = ExchangeKind::automatic;
  config.ranks_per_node = 2;
  const bool pays = size % 2 == 0 && size > 2;
  REQUIRE_ALL_RANKS((choose_route(config, world).kind == ExchangeKind::two_level) == pays);
  config.exchange = ExchangeKind::two_level;
  const std::string message = message_of<UserError>([&] { choose_route(config, world); });
  REQUIRE_ALL_RANKS(message.empty() == (size % 2 == 0));
  REQUIRE_ALL_RANKS(size % 2 == 0 ||
                    message.find("parallel.ranks_per_node: found 2") != std::string::npos);
}

}  // namespace openmoe::test
