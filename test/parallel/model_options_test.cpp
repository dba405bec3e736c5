// Options of the model and its memory on grids: whole training steps must give the same bits with
// every kind of recomputation, and the same losses on every grid.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "apps/network.h"
#include "apps/plan_fit.h"
#include "apps/plan_step.h"
#include "apps/step_agreement.h"
#include "apps/training_step.h"
#include "core/config/recipe_io.h"
#include "core/cpu/cpu_ops.h"
#include "test/support/random_batch.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

constexpr std::int64_t kSteps = 3;

Recipe recipe_of(const std::string& file, const std::vector<std::string>& changes) {
  return load_recipe(std::string(OPENMOE_TEST_SOURCE_DIR) + "/test/recipes/" + file, changes);
}

// What some steps leave behind.
struct Steps {
  std::vector<double> losses;  // and all other sums of each step
  std::vector<float> values;   // of this rank's parameters
  std::int64_t activation_bytes = 0;
  double dropped = 0.0, assignments = 0.0, kept = 0.0;
};

Steps run_steps(const Recipe& recipe, Communicator& world, std::int64_t ep, std::int64_t tp) {
  ProcessGrid grid(world, ep, tp);
  grid.check(recipe);
  const auto ops = make_cpu_ops();
  Network network(*ops, grid, recipe, micro_batch_rows(recipe, grid.num_data_ranks()), true);
  network.params().initialize(*ops, 1);
  TrainingStep training(network, grid, recipe);
  const std::int64_t rows = recipe.data.batch_rows / grid.num_data_ranks();
  const Batch batch = random_rows(recipe, grid.data_rank() * rows, rows);
  Steps steps;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const BatchCounts counts = agree_on_step(batch, recipe, grid, 0).counts;
    const StepOutcome outcome = training.run(batch, counts, step);
    REQUIRE_ALL_RANKS(outcome.is_finite());
    steps.losses.push_back(outcome.losses.total);
    for (const double sum : outcome.sums.flatten()) steps.losses.push_back(sum);
    for (const MoeLayerSums& layer : outcome.sums.moe) {
      steps.dropped += layer.dropped_first + layer.dropped_second;
      for (const double chosen : layer.chosen) steps.assignments += chosen;
      for (const double kept : layer.kept) steps.kept += kept;
    }
  }
  for (const Param& param : network.params().params()) {
    const float* const data = param.value.as<float>();
    steps.values.insert(steps.values.end(), data, data + param.value.num_elements());
  }
  steps.activation_bytes = network.arena().used_bytes(MemoryCategory::activations);
  return steps;
}

bool same_bits(const Steps& a, const Steps& b) {
  const auto same = [](const auto& x, const auto& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0;
  };
  return same(a.losses, b.losses) && same(a.values, b.values);
}

// Calls test(ep, tp) for every grid of the world's ranks.
template <typename Test>
void for_grids(Test&& test) {
  const std::int64_t ranks = mpi().world().size();
  for (const std::int64_t ep : {1, 2, 4})
    for (const std::int64_t tp : {1, 2}) {
      if (ranks % (ep * tp) != 0) continue;
      INFO("ep " << ep << ", tp " << tp << " of " << ranks << " ranks");
      test(ep, tp);
    }
}

}  // namespace

TEST_CASE("no kind of recomputation changes a bit on any grid, and each needs less memory") {
  for (const char* file : {"tiny-released.json", "tiny-paper.json"})
    for (const char* type : {"f32", "bf16"})
      for (const char* in_backward : {"true", "false"}) {
        const auto with = [&](const char* kind) {
          return recipe_of(file, {concat("run.compute_type=", type),
                                  concat("parallel.update_in_backward=", in_backward),
                                  concat("parallel.recompute=", kind), "model.num_layers=4"});
        };
        for_grids([&](std::int64_t ep, std::int64_t tp) {
          INFO(file << " " << type << ", update in backward: " << in_backward);
          const Steps kept = run_steps(with("none"), mpi().world(), ep, tp);
          std::int64_t bytes_with_one = kept.activation_bytes;  // ffn or attention, the smaller
          for (const char* kind : {"ffn", "attention", "block"}) {
            INFO(kind);
            const Steps again = run_steps(with(kind), mpi().world(), ep, tp);
            REQUIRE_ALL_RANKS(same_bits(kept, again));
            if (std::string(kind) == "block")
              REQUIRE_ALL_RANKS(again.activation_bytes < bytes_with_one);
            else
              REQUIRE_ALL_RANKS(again.activation_bytes < kept.activation_bytes);
            bytes_with_one = std::min(bytes_with_one, again.activation_bytes);
          }
        });
      }
}

TEST_CASE("dropless routing drops nothing, and does what an endless capacity does") {
  for (const char* file : {"tiny-released.json", "tiny-paper.json"}) {
    // Routers that send nearly all tokens to the same experts.
    const std::vector<std::string> skewed = {"model.router_init_std=50",
                                             "loss.load_balance_weight=0"};
    const auto with = [&](std::vector<std::string> changes) {
      changes.insert(changes.end(), skewed.begin(), skewed.end());
      return recipe_of(file, changes);
    };
    for_grids([&](std::int64_t ep, std::int64_t tp) {
      INFO(file);
      REQUIRE_ALL_RANKS(run_steps(with({}), mpi().world(), ep, tp).dropped > 0.0);
      const std::string dropless = "routing.capacity_counts=dropless";
      const Steps all = run_steps(with({dropless}), mpi().world(), ep, tp);
      REQUIRE_ALL_RANKS(all.dropped == 0.0);
      REQUIRE_ALL_RANKS(all.assignments > 0.0);
      REQUIRE_ALL_RANKS(all.kept == all.assignments);  // both choices of every routed token
      const Steps large =
          run_steps(with({"routing.capacity_counts=tokens", "routing.capacity_factor=4"}),
                    mpi().world(), ep, tp);
      REQUIRE_ALL_RANKS(same_bits(all, large));
      const Steps padded =
          run_steps(with({dropless, "parallel.exchange=fixed_capacity"}), mpi().world(), ep, tp);
      REQUIRE_ALL_RANKS(same_bits(all, padded));
      const Steps again =
          run_steps(with({dropless, "parallel.recompute=block"}), mpi().world(), ep, tp);
      REQUIRE_ALL_RANKS(same_bits(all, again));
    });
  }
}

TEST_CASE("a parallel block gives the same losses on every grid, and same bits recomputed") {
  const std::vector<std::string> block = {"model.parallel_block=true",
                                          "model.residual_ffn=parallel", "model.num_layers=4"};
  const auto with = [&](const char* type, const std::string& more) {
    std::vector<std::string> changes = block;
    changes.push_back(concat("run.compute_type=", type));
    if (!more.empty()) changes.push_back(more);
    return recipe_of("tiny-released.json", changes);
  };
  const auto alone = make_self_communicator();
  for (const char* type : {"f32", "bf16"}) {
    const Steps reference = run_steps(with(type, ""), *alone, 1, 1);
    for_grids([&](std::int64_t ep, std::int64_t tp) {
      INFO(type);
      const Steps here = run_steps(with(type, ""), mpi().world(), ep, tp);
      const std::size_t per_step = here.losses.size() / kSteps;
      bool is_near = here.losses.size() == reference.losses.size();
      for (std::size_t i = 0; is_near && i < here.losses.size(); i += per_step)  // the totals
        is_near = here.losses[i] == Approx(reference.losses[i]).epsilon(1e-4);
      REQUIRE_ALL_RANKS(is_near);
      for (const char* kind : {"ffn", "attention", "block"}) {
        INFO(kind);
        const Steps again =
            run_steps(with(type, concat("parallel.recompute=", kind)), mpi().world(), ep, tp);
        REQUIRE_ALL_RANKS(same_bits(here, again));
        REQUIRE_ALL_RANKS(again.activation_bytes < here.activation_bytes);
      }
      if (mpi().world().size() > 2) return;  // sums of more ranks depend on what is summed at once
      REQUIRE_ALL_RANKS(same_bits(
          here, run_steps(with(type, "parallel.update_in_backward=true"), mpi().world(), ep, tp)));
    });
  }
}

}  // namespace openmoe::test
