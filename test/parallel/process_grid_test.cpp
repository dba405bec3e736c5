// Coordinates and groups of ProcessGrid, and what it and check() refuse.
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "parallel/process_grid.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

// World ranks of a group, in group order.
std::vector<int> members(Communicator& comm) {
  std::vector<int> ranks;
  for (const std::string& text : comm.all_gather(std::to_string(mpi().world_rank())))
    ranks.push_back(std::stoi(text));
  return ranks;
}

// A recipe that fits any grid of up to 6 ranks: 2 rows of 32 tokens per routing group of 64.
Recipe fitting_recipe() {
  Recipe recipe;
  recipe.name = "fit";
  recipe.model.num_layers = 2;
  recipe.model.moe_interval = 2;
  recipe.model.num_experts = 12;
  recipe.routing.group_tokens = 64;
  recipe.data.sequence_length = 32;
  recipe.data.batch_rows = 24;
  return recipe;
}

}  // namespace

TEST_CASE("coordinates and groups of every expert-parallel degree") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  for (std::int64_t ep = 1; ep <= size; ++ep) {
    if (size % ep != 0) continue;
    INFO("ep " << ep);
    ProcessGrid grid(world, ep, 1);
    const std::int64_t self = world.rank_in_group();
    REQUIRE_ALL_RANKS(grid.dp() == size / ep && grid.ep() == ep && grid.tp() == 1);
    REQUIRE_ALL_RANKS(grid.num_data_ranks() == size && grid.data_rank() == self);
    REQUIRE_ALL_RANKS(grid.dp_rank() == self / ep && grid.ep_rank() == self % ep &&
                      grid.tp_rank() == 0);
    REQUIRE_ALL_RANKS(grid.is_root() == (self == 0));

    std::vector<int> data, expert, replicas;
    for (int r = 0; r < size; ++r) {
      data.push_back(r);
      if (r / ep == self / ep) expert.push_back(r);
      if (r % ep == self % ep) replicas.push_back(r);
    }
    REQUIRE_ALL_RANKS(members(grid.data()) == data);
    REQUIRE_ALL_RANKS(members(grid.expert()) == expert);
    REQUIRE_ALL_RANKS(members(grid.replicas()) == replicas);
    REQUIRE_ALL_RANKS(grid.expert().rank_in_group() == grid.ep_rank());
    REQUIRE_ALL_RANKS(grid.replicas().rank_in_group() == grid.dp_rank());
    std::ostringstream text;
    text << "rank " << self << " (dp " << self / ep << ", ep " << self % ep << ", tp 0)";
    REQUIRE_ALL_RANKS(grid.coordinates() == text.str());
    grid.check(fitting_recipe());
  }
}

TEST_CASE("groups of every grid of three dimensions: tp fastest, then ep") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  for (std::int64_t tp = 1; tp <= size; ++tp)
    for (std::int64_t ep = 1; ep * tp <= size; ++ep) {
      if (size % (ep * tp) != 0) continue;
      INFO("ep " << ep << ", tp " << tp);
      ProcessGrid grid(world, ep, tp);
      const std::int64_t dp = size / (ep * tp), self = world.rank_in_group();
      const std::int64_t t = self % tp, e = self / tp % ep, d = self / tp / ep;
      REQUIRE_ALL_RANKS(grid.dp() == dp && grid.ep() == ep && grid.tp() == tp);
      REQUIRE_ALL_RANKS(grid.dp_rank() == d && grid.ep_rank() == e && grid.tp_rank() == t);
      REQUIRE_ALL_RANKS(grid.num_data_ranks() == dp * ep && grid.data_rank() == d * ep + e);
      std::vector<int> data, expert, replicas, tensor;
      for (int r = 0; r < size; ++r) {
        const bool same_t = r % tp == t, same_e = r / tp % ep == e, same_d = r / tp / ep == d;
        if (same_t) data.push_back(r);
        if (same_t && same_d) expert.push_back(r);
        if (same_t && same_e) replicas.push_back(r);
        if (same_e && same_d) tensor.push_back(r);
      }
      REQUIRE_ALL_RANKS(members(grid.data()) == data);
      REQUIRE_ALL_RANKS(members(grid.expert()) == expert);
      REQUIRE_ALL_RANKS(members(grid.replicas()) == replicas);
      REQUIRE_ALL_RANKS(members(grid.tensor()) == tensor);
      REQUIRE_ALL_RANKS(grid.tensor().rank_in_group() == t);
    }
}

TEST_CASE("a grid that the ranks cannot form is refused on every rank") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  const auto refusal = [&](std::int64_t ep, std::int64_t tp) {
    return message_of<UserError>([&] { ProcessGrid grid(world, ep, tp); });
  };
  const std::string too_many = refusal(size + 1, 1);
  CAPTURE(too_many);
  REQUIRE_ALL_RANKS(contains(too_many, "ep = " + std::to_string(size + 1) +
                                           " does not divide the number of ranks, " +
                                           std::to_string(size)));
  REQUIRE_ALL_RANKS(contains(refusal(0, 1), "ep = 0"));
  REQUIRE_ALL_RANKS(contains(refusal(1, 0), "tp = 0"));
  REQUIRE_ALL_RANKS(contains(refusal(1, size + 1), "tp = " + std::to_string(size + 1) +
                                                       " does not divide the number of ranks, " +
                                                       std::to_string(size)));
  if (size == 6) {
    REQUIRE_ALL_RANKS(contains(refusal(4, 1), "use --ep 1, 2, 3 or 6"));
    REQUIRE_ALL_RANKS(
        contains(refusal(2, 2), "6 / tp 2; use --ep 1 or 3, or start a multiple of 4"));
    REQUIRE_ALL_RANKS(contains(refusal(1, 4), "use --tp 1, 2, 3 or 6"));
  }
}

TEST_CASE("check names the keys in conflict and values that would do") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  ProcessGrid grid(world, size, 1);
  const auto refusal = [&](const Recipe& recipe) {
    return message_of<UserError>([&] { grid.check(recipe); });
  };
  Recipe recipe = fitting_recipe();

  recipe.model.num_experts = 2 * size + 1;
  REQUIRE_ALL_RANKS(size == 1 ||
                    contains(refusal(recipe), "ep = " + std::to_string(size) +
                                                  " does not divide model.num_experts = " +
                                                  std::to_string(2 * size + 1)));
  recipe.model.moe_interval = 0;  // a dense model has no experts to divide
  REQUIRE_ALL_RANKS(refusal(recipe).empty());

  recipe = fitting_recipe();
  recipe.data.batch_rows = 2 * size + 1;
  const std::string rows = refusal(recipe);
  CAPTURE(rows);
  REQUIRE_ALL_RANKS(contains(rows, "data.batch_rows = " + std::to_string(2 * size + 1)));
  REQUIRE_ALL_RANKS(
      contains(rows, "would do: " + std::to_string(2 * size) + " or " + std::to_string(4 * size)));

  recipe.data.batch_rows = 3 * size;  // 3 rows of 32 tokens per rank: one group and a half
  const std::string group = refusal(recipe);
  CAPTURE(group);
  REQUIRE_ALL_RANKS(contains(group, "3 rows x data.sequence_length 32 = 96 tokens"));
  REQUIRE_ALL_RANKS(contains(group, "routing.group_tokens = 64"));
  REQUIRE_ALL_RANKS(
      contains(group, "would do: " + std::to_string(2 * size) + " or " + std::to_string(4 * size)));
  recipe.model.moe_interval = 0;
  REQUIRE_ALL_RANKS(refusal(recipe).empty());

  recipe = fitting_recipe();
  recipe.data.batch_rows = size;  // fewer rows than a group needs
  REQUIRE_ALL_RANKS(contains(refusal(recipe), "would do: " + std::to_string(2 * size)));

  recipe = fitting_recipe();
  recipe.routing.group_tokens = 16;  // two groups per row: any number of rows will do
  recipe.data.batch_rows = 3 * size;
  REQUIRE_ALL_RANKS(refusal(recipe).empty());
  recipe.routing.group_tokens = 48;  // 3 rows hold 2 groups
  REQUIRE_ALL_RANKS(refusal(recipe).empty());
  recipe.data.batch_rows = 2 * size;
  REQUIRE_ALL_RANKS(contains(refusal(recipe), "would do: " + std::to_string(3 * size)));
}

TEST_CASE("check of tensor parallelism names what does not divide") {
  Communicator& world = mpi().world();
  const std::int64_t size = world.size();
  ProcessGrid grid(world, 1, size);
  Recipe recipe = fitting_recipe();
  recipe.model.d_model = recipe.model.ffn_dim = recipe.data.sequence_length = 60 * 64;
  recipe.model.num_heads = size;
  recipe.routing.group_tokens = recipe.data.sequence_length;
  recipe.data.batch_rows = 1;  // the ranks share every row
  REQUIRE_ALL_RANKS(message_of<UserError>([&] { grid.check(recipe); }).empty());
  recipe.model.num_heads = 2 * size + 1;
  const std::string message = message_of<UserError>([&] { grid.check(recipe); });
  CAPTURE(message);
  REQUIRE_ALL_RANKS(size == 1 ||
                    contains(message, concat("tp = ", size, " does not divide model.num_heads = ",
                                             2 * size + 1, "; use --tp 1")));
}

TEST_CASE("check of micro-batches") {
  Communicator& world = mpi().world();
  ProcessGrid grid(world, 1, 1);
  const auto refusal = [&](const Recipe& recipe) {
    return message_of<UserError>([&] { grid.check(recipe); });
  };
  Recipe recipe = fitting_recipe();
  recipe.data.batch_rows = 12 * world.size();
  for (const std::int64_t rows : {0, 2, 4, 6, 12}) {
    recipe.parallel.micro_batch_rows = rows;
    REQUIRE_ALL_RANKS(refusal(recipe).empty());
  }
  for (const std::int64_t rows : {-1, 1, 3, 5, 8, 24}) {
    recipe.parallel.micro_batch_rows = rows;
    const std::string message = refusal(recipe);
    CAPTURE(message);
    REQUIRE_ALL_RANKS(contains(message, "parallel.micro_batch_rows = " + std::to_string(rows) +
                                            " must split the 12 rows"));
  }
  recipe.parallel.micro_batch_rows = 5;
  REQUIRE_ALL_RANKS(contains(refusal(recipe), "use 2, 4 or 6, or 0"));
  recipe.parallel.micro_batch_rows = 4;
  recipe.parallel.update_in_backward = true;
  REQUIRE_ALL_RANKS(contains(refusal(recipe), "update_in_backward needs the 12 rows"));
  recipe.parallel.micro_batch_rows = 12;
  REQUIRE_ALL_RANKS(refusal(recipe).empty());
  recipe.parallel.micro_batch_rows = 5;
  recipe.model.num_experts = 5;  // both problems in one message
  ProcessGrid wide(world, world.size(), 1);
  const std::string both = message_of<UserError>([&] { wide.check(recipe); });
  REQUIRE_ALL_RANKS(contains(both, "micro_batch_rows"));
  REQUIRE_ALL_RANKS(5 % world.size() == 0 || contains(both, "num_experts"));
}

TEST_CASE("a grid of one rank needs no MPI") {
  const auto self = make_self_communicator();
  ProcessGrid grid(*self, 1, 1);
  REQUIRE(grid.coordinates() == "rank 0 (dp 0, ep 0, tp 0)");
  REQUIRE(grid.data().size() == 1);
  grid.check(fitting_recipe());
}

}  // namespace openmoe::test
