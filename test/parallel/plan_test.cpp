// A plan against a real training step: the same collectives, the same bytes, the same memory.
#include <unistd.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "apps/network.h"
#include "apps/plan_fit.h"
#include "apps/plan_record.h"
#include "apps/plan_step.h"
#include "apps/step_agreement.h"
#include "apps/trainer.h"
#include "apps/training_step.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "core/cpu/cpu_ops.h"
#include "parallel/observed_communicator.h"
#include "test/support/random_batch.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

// A sanitizer's own memory grows with the program's.
#if defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OPENMOE_IS_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OPENMOE_IS_SANITIZED
#endif
#ifdef OPENMOE_IS_SANITIZED
constexpr bool kIsSanitized = true;
#else
constexpr bool kIsSanitized = false;
#endif

Recipe recipe_of(const std::string& file, const std::vector<std::string>& changes) {
  return load_recipe(std::string(OPENMOE_TEST_SOURCE_DIR) + "/" + file, changes);
}

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t pages = 0, resident_pages = 0;
  file >> pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

// What a step did.
struct RealStep {
  std::vector<PlanRecord::Collective> collectives;
  std::map<std::pair<std::int64_t, std::int64_t>, Routing> routings;  // by (micro-batch, layer)
  std::int64_t memory = 0;                                            // of the arena
  std::int64_t resident = 0;                                          // that the process grew by
  RehearsalGrid grid;
};

RealStep real_step(const Recipe& recipe, std::int64_t ep, std::int64_t tp) {
  CollectiveObservers observers;
  const auto world = make_observed_communicator(mpi().world(), observers);
  ProcessGrid grid(*world, ep, tp);
  grid.check(recipe);
  const auto ops = make_cpu_ops();
  const std::int64_t resident_before = resident_bytes();
  Network network(*ops, grid, recipe, micro_batch_rows(recipe, grid.num_data_ranks()), true);
  network.params().initialize(*ops, 1);
  TrainingStep training(network, grid, recipe);
  RealStep real;
  real.grid = {grid.dp(), grid.ep(), grid.tp(), grid.world_rank()};
  real.memory = network.arena().used_bytes();
  const std::int64_t rows = recipe.data.batch_rows / grid.num_data_ranks();
  const Batch batch = random_rows(recipe, grid.data_rank() * rows, rows);
  std::int64_t micro_batch = 0;
  const auto keep_routing = [&](const Batch&, std::int64_t) {
    std::int64_t layer = 0;
    for (const MoeActivations* moe : network.model().moe_activations())
      real.routings[{micro_batch, layer++}] = moe->routing;
    ++micro_batch;
  };
  PlanRecord record(real.grid);
  observers.add(record);
  const BatchCounts counts = agree_on_step(batch, recipe, grid, 0).counts;
  const StepOutcome outcome = training.run(batch, counts, 0, keep_routing);
  observers.remove(record);
  real.resident = resident_bytes() - resident_before;
  REQUIRE_ALL_RANKS(outcome.is_finite());
  real.collectives = record.collectives();
  return real;
}

const PlanRecord::Collective* find(const std::vector<PlanRecord::Collective>& all,
                                   const PlanRecord::Collective& wanted) {
  for (const auto& kind : all)
    if (kind.group == wanted.group && kind.verb == wanted.verb) return &kind;
  return nullptr;
}

bool is_routed(const PlanRecord::Collective& kind, const Recipe& recipe,
               const RehearsalGrid& grid) {
  const bool is_fixed = recipe.parallel.exchange == ExchangeKind::fixed_capacity;
  return (kind.verb == "all_to_all_rows" || kind.verb == "start of all_to_all_rows") &&
         ((kind.group == "expert" && !is_fixed) || (kind.group == "tensor" && grid.tp > 1));
}

// Returns whether this step's routing moved other bytes than a balanced one.
bool check_plan(const Recipe& recipe, std::int64_t ep, std::int64_t tp) {
  INFO("ep " << ep << ", tp " << tp);
  const RealStep real = real_step(recipe, ep, tp);
  const RouteRows as_it_was = [&](std::int64_t micro_batch, std::int64_t layer,
                                  std::span<std::int64_t> sent, std::span<std::int64_t> received) {
    const Routing& routing = real.routings.at({micro_batch, layer});
    std::copy(routing.sent_per_expert.begin(), routing.sent_per_expert.end(), sent.begin());
    std::copy(routing.received_per_source.begin(), routing.received_per_source.end(),
              received.begin());
  };
  const std::int64_t rows = micro_batch_rows(recipe, real.grid.num_data_ranks());
  PlanRecord exact(real.grid), balanced(real.grid), most(real.grid);
  rehearse_step(recipe, real.grid, as_it_was, exact, /*every_micro_batch=*/true);
  rehearse_step(recipe, real.grid, balanced_rows(recipe, real.grid, rows), balanced);
  rehearse_step(recipe, real.grid, most_rows(recipe, real.grid, rows), most);
  bool is_unbalanced = false;
  bool same = exact.collectives().size() == real.collectives.size() &&
              balanced.collectives().size() == real.collectives.size();
  for (const auto& kind : real.collectives) {
    const auto *in_exact = find(exact.collectives(), kind),
               *in_balanced = find(balanced.collectives(), kind),
               *in_most = find(most.collectives(), kind);
    const bool is_known = in_exact != nullptr && in_balanced != nullptr && in_most != nullptr;
    INFO(kind.group << " " << kind.verb << ": " << kind.calls << " calls, " << kind.bytes
                    << " bytes");
    CHECK(is_known);
    same = same && is_known;
    if (!is_known) continue;
    INFO("planned exactly " << in_exact->calls << " and " << in_exact->bytes << ", balanced "
                            << in_balanced->calls << " and " << in_balanced->bytes << ", at most "
                            << in_most->bytes);
    const bool is_right = in_exact->calls == kind.calls && in_exact->bytes == kind.bytes &&
                          in_exact->ranks == kind.ranks && in_balanced->calls == kind.calls &&
                          kind.bytes <= in_most->bytes && in_balanced->bytes <= in_most->bytes &&
                          (is_routed(kind, recipe, real.grid) || in_balanced->bytes == kind.bytes);
    CHECK(is_right);
    same = same && is_right;
    is_unbalanced = is_unbalanced || in_balanced->bytes != kind.bytes;
  }
  REQUIRE_ALL_RANKS(same);
  Arena dry;
  size_rank(dry, recipe, real.grid);
  REQUIRE_ALL_RANKS(dry.used_bytes() == Approx(static_cast<double>(real.memory)).epsilon(0.03));
  if (recipe.model.vocab_size % tp == 0) REQUIRE_ALL_RANKS(dry.used_bytes() == real.memory);
  return is_unbalanced;
}

// On every grid of the world that the recipe suits.
bool check_grids(const Recipe& recipe) {
  const std::int64_t ranks = mpi().world().size();
  bool is_unbalanced = false;
  for (const std::int64_t ep : {1, 2, 4})
    for (const std::int64_t tp : {1, 2})
      if (ranks % (ep * tp) == 0 && check_plan(recipe, ep, tp)) is_unbalanced = true;
  return is_unbalanced;
}

const char* const kReleased = "test/recipes/tiny-released.json";
const char* const kPaper = "test/recipes/tiny-paper.json";

}  // namespace

TEST_CASE("a step's collectives are those of its plan, f32 and bf16, released and paper") {
  for (const char* recipe : {kReleased, kPaper})
    for (const char* type : {"f32", "bf16"}) {
      INFO(recipe << " " << type);
      check_grids(recipe_of(recipe, {std::string("run.compute_type=") + type}));
    }
}

TEST_CASE("the plan follows micro-batches, buckets, recomputation and updates in the backward") {
  const std::vector<std::string> changes[] = {
      {"parallel.micro_batch_rows=2"},
      {"parallel.reduction_bucket_kb=64"},
      {"parallel.micro_batch_rows=2", "parallel.reduction_bucket_kb=1"},
      {"parallel.update_in_backward=true"},
      {"parallel.shard_update=true"},
      {"parallel.shard_update=true", "run.compute_type=bf16"},
      {"parallel.shard_update=true", "run.compute_type=bf16", "model.tied_embedding=true",
       "run.checkpoint_in_background=true"},
      {"run.checkpoint_in_background=true"},
      {"parallel.exchange=fixed_capacity"},
      {"parallel.exchange=fixed_capacity", "run.compute_type=bf16"},
      {"parallel.exchange_parts=2", "model.num_experts=16"},
      {"parallel.exchange_parts=2", "model.num_experts=16", "parallel.exchange=fixed_capacity"},
      {"parallel.recompute=ffn", "run.compute_type=bf16"},
      {"parallel.recompute=attention", "parallel.micro_batch_rows=2"},
      {"parallel.recompute=block", "parallel.update_in_backward=true"},
      {"parallel.recompute=block", "run.compute_type=bf16"},
      {"model.tied_embedding=true", "model.vocab_size=8193"},
      {"model.moe_interval=0"},
      {"model.parallel_block=true", "model.residual_ffn=parallel", "parallel.recompute=block"}};
  for (const auto& change : changes) {
    INFO(change[0]);
    check_grids(recipe_of(kReleased, change));
  }
}

TEST_CASE("the plan of a step in which experts get different numbers of rows") {
  const bool is_unbalanced = check_grids(
      recipe_of(kReleased, {"model.moe_interval=1", "routing.capacity_counts=assignments",
                            "routing.capacity_factor=2"}));
  REQUIRE_ALL_RANKS(is_unbalanced == (mpi().world().size() > 1));
  check_grids(recipe_of(kReleased, {"routing.capacity_counts=dropless"}));
}

TEST_CASE("divided state takes its part of a rank's memory, and so does a snapshot of it") {
  const std::string half = "run.compute_type=bf16", snapshot = "run.checkpoint_in_background=true";
  const auto size = [&](Arena& dry, const RehearsalGrid& grid, bool divided) {
    size_rank(
        dry,
        recipe_of("recipes/quickstart.json",
                  {half, snapshot, concat("parallel.shard_update=", divided ? "true" : "false")}),
        grid);
  };
  const auto bytes = [](const Arena& arena, MemoryCategory category) {
    return static_cast<double>(arena.used_bytes(category));
  };
  for (const RehearsalGrid grid : {RehearsalGrid{4, 1, 1, 0}, RehearsalGrid{2, 2, 1, 3}}) {
    Arena whole, divided;
    size(whole, grid, false);
    size(divided, grid, true);
    const auto ratio = [&](MemoryCategory category) {
      return bytes(divided, category) / bytes(whole, category);
    };
    INFO("ep " << grid.ep);
    // Row statistics and second moments are divided, column statistics of dense matrices are not.
    CHECK(ratio(MemoryCategory::optimizer) < 0.85);
    CHECK(ratio(MemoryCategory::parameters) < 0.75);
    CHECK(ratio(MemoryCategory::gradients) == 1.0);
    // Rank 0 writes the embedding, which is whole, and a quarter of nearly all else.
    if (grid.world_rank == 0) CHECK(ratio(MemoryCategory::snapshot) < 0.4);
  }
}

// A model large enough for what is not planned (buffers of products and of MPI) to be small.
TEST_CASE("the memory that a rank's process grows by in a step is the planned memory") {
  const Recipe recipe = recipe_of("recipes/quickstart.json", {"data.batch_rows=32"});
  const std::int64_t ranks = mpi().world().size();
  if (ranks > 2 || kIsSanitized) return;
  for (const std::int64_t ep : {1, 2})
    for (const std::int64_t tp : {1, 2}) {
      if (ranks % (ep * tp) != 0) continue;
      INFO("ep " << ep << ", tp " << tp);
      real_step(recipe_of(kReleased, {}), ep, tp);  // what a process makes once is made
      const RealStep real = real_step(recipe, ep, tp);
      Arena dry;
      size_rank(dry, recipe, real.grid);
      REQUIRE_ALL_RANKS(real.resident ==
                        Approx(static_cast<double>(dry.used_bytes())).epsilon(0.03));
    }
}

}  // namespace openmoe::test
