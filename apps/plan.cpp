// openmoe plan: parameters, FLOPs and memory of a recipe on a grid, before anything is queued.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/network.h"
#include "apps/trainer.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "core/param_table.h"
#include "parallel/planned_group.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

struct PlanOptions {
  RecipeOptions recipe;
  GridOptions grid;
  std::int64_t ranks = 0;  // 0: the ranks of this job, or ep * tp when it has one
  bool as_json = false;
};

// Bytes on one rank by category, and the grid they belong to.
void add_memory(Json& plan, const Recipe& recipe, std::int64_t ep, std::int64_t tp,
                std::int64_t ranks) {
  const auto world = make_planned_group(static_cast<int>(ranks));
  const ProcessGrid grid(*world, ep, tp);
  grid.check(recipe);
  Arena arena;
  size_network(arena, recipe, ep, tp, micro_batch_rows(recipe, grid), true);
  plan["grid"] = {{"ranks", ranks},
                  {"dp", grid.dp()},
                  {"ep", grid.ep()},
                  {"tp", grid.tp()},
                  {"rows_per_rank", recipe.data.batch_rows / grid.num_data_ranks()},
                  {"micro_batch_rows", micro_batch_rows(recipe, grid)}};
  Json memory;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    memory[name_of(category)] = arena.used_bytes(category);
  }
  memory["total"] = arena.used_bytes();
  plan["memory"] = memory;
}

Json make_plan(const Recipe& recipe) {
  const ParameterCounts counts = count_parameters(recipe.model);
  const double flops = flops_per_token(recipe);
  const std::int64_t positions = recipe.data.batch_rows * recipe.data.sequence_length;
  Json plan;
  plan["name"] = recipe.name;
  plan["parameters"] = {{"total", counts.total},
                        {"active", counts.active},
                        {"active_with_embedding", counts.active_with_embedding}};
  plan["flops_per_token"] = flops;
  plan["positions_per_step"] = positions;
  plan["flops_per_step"] = flops * static_cast<double>(positions);
  plan["positions"] = positions * recipe.run.num_steps;
  plan["flops"] = flops * static_cast<double>(positions * recipe.run.num_steps);
  return plan;
}

void print_table(const Json& plan) {
  const auto line = [](const char* what, const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    std::printf("%-26s %20s\n", what, text);
  };
  std::printf("%s\n", plan["name"].get<std::string>().c_str());
  const Json& parameters = plan["parameters"];
  line("parameters of the model", "%.0f", parameters["total"]);
  line("  active per token", "%.0f", parameters["active"]);
  line("  with embedding and head", "%.0f", parameters["active_with_embedding"]);
  line("FLOPs per token", "%.4g", plan["flops_per_token"]);
  line("positions per step", "%.0f", plan["positions_per_step"]);
  line("FLOPs per step", "%.4g", plan["flops_per_step"]);
  line("positions of the run", "%.0f", plan["positions"]);
  line("FLOPs of the run", "%.4g", plan["flops"]);
  const Json& grid = plan["grid"];
  std::printf(
      "memory per rank (MiB), %lld ranks = dp %lld x ep %lld x tp %lld, %lld rows at once\n",
      grid["ranks"].get<long long>(), grid["dp"].get<long long>(), grid["ep"].get<long long>(),
      grid["tp"].get<long long>(), grid["micro_batch_rows"].get<long long>());
  for (const auto& item : plan["memory"].items())
    line(("  " + item.key()).c_str(), "%.1f", item.value().get<double>() / (1 << 20));
}

// In place of a plan, as --help is: no recipe is asked for.
[[noreturn]] void print_keys(const MpiEnvironment& mpi) {
  if (mpi.world_rank() == 0) std::cout << recipe_key_reference() << std::flush;
  throw CLI::Success();
}

int run_plan(const MpiEnvironment& mpi, const PlanOptions& options) {
  const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  Json plan = make_plan(recipe);
  const std::int64_t ep = options.grid.ep_of(recipe), tp = options.grid.tp_of(recipe);
  const std::int64_t job_ranks = mpi.world_size() > 1 ? mpi.world_size() : ep * tp;
  add_memory(plan, recipe, ep, tp, options.ranks > 0 ? options.ranks : job_ranks);
  if (mpi.world_rank() != 0) return kExitSuccess;
  if (options.as_json)
    std::cout << plan.dump(2) << "\n";
  else
    print_table(plan);
  return kExitSuccess;
}

}  // namespace

void register_plan(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand("plan", "parameters, FLOPs and memory of a recipe");
  auto options = std::make_shared<PlanOptions>();
  add_recipe_options(*command, options->recipe);
  add_grid_options(*command, options->grid);
  command
      ->add_option("--ranks", options->ranks,
                   "ranks to plan for (default: those of this job, or ep times tp)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--json", options->as_json, "print one JSON object");
  command->add_flag_callback(
      "--keys", [&context] { print_keys(context.mpi); }, "print the reference of all recipe keys");
  command->callback([&context, options] {
    context.run = [&context, options] { return run_plan(context.mpi, *options); };
  });
}

}  // namespace openmoe
