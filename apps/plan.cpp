// openmoe plan: parameters, FLOPs, memory, collectives and time of a recipe on a grid, before
// anything is queued.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/machine.h"
#include "apps/machine_measure.h"
#include "apps/plan_fit.h"
#include "apps/plan_record.h"
#include "apps/plan_step.h"
#include "apps/plan_table.h"
#include "apps/training_step.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"
#include "core/param_table.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kSecondsPerDay = 86400.0;

struct PlanOptions {
  RecipeOptions recipe;
  GridOptions grid;
  std::int64_t ranks = 0;  // 0: the ranks of this job, or ep * tp when it has one
  std::string machine;     // file; "": none
  bool measure = false;    // this machine
  bool as_json = false;
};

Json parameters_of(const Recipe& recipe) {
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

// Bytes on one rank by category, and the grid they belong to.
void add_memory(Json& plan, const Recipe& recipe, const RehearsalGrid& grid) {
  Arena arena;
  size_rank(arena, recipe, grid);
  plan["grid"] = {{"ranks", grid.ranks()},
                  {"dp", grid.dp},
                  {"ep", grid.ep},
                  {"tp", grid.tp},
                  {"rows_per_rank", recipe.data.batch_rows / grid.num_data_ranks()},
                  {"micro_batch_rows", micro_batch_rows(recipe, grid.num_data_ranks())}};
  Json memory;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (arena.shows(category)) memory[name_of(category)] = arena.used_bytes(category);
  }
  memory["total"] = arena.used_bytes();
  plan["memory"] = memory;
}

// `most`: with as many rows to and from experts as there can be.
void add_collectives(Json& plan, const PlanRecord& balanced, const PlanRecord& most) {
  OPENMOE_CHECK(balanced.collectives().size() == most.collectives().size(), "two rehearsals");
  Json rows = Json::array();
  for (std::size_t i = 0; i < balanced.collectives().size(); ++i) {
    const PlanRecord::Collective& of = balanced.collectives()[i];
    rows.push_back({{"group", of.group},
                    {"verb", of.verb},
                    {"ranks", of.ranks},
                    {"calls", of.calls},
                    {"bytes", of.bytes},
                    {"most_bytes", most.collectives()[i].bytes}});
  }
  plan["collectives"] = rows;
}

// How rows travel to their experts: the rehearsal has no two_level.
void add_exchange(Json& plan, const Recipe& recipe, const RehearsalGrid& grid) {
  if (grid.ep == 1 || recipe.model.num_moe_layers() == 0) return;
  const ExchangeRoute route = planned_route(recipe.parallel, grid.ep, grid.expert_ranks_per_host());
  const bool is_two_level = route.kind == ExchangeKind::two_level;
  plan["exchange"] = concat(enum_name(rehearsed_route(recipe, grid).kind),
                            is_two_level ? ", in place of two_level" : "");
}

void add_time(Json& plan, const Recipe& recipe, const RehearsalGrid& grid, const Machine& machine,
              const PlanRecord& record) {
  Json parts, groups;
  double compute = 0.0, optimizer = 0.0;
  for (const PlanRecord::Part& part : record.parts()) {
    parts[part.name] = part.seconds;
    (part.name == "optimizer" || part.name == "gradient reduction" ? optimizer : compute) +=
        part.seconds;
  }
  for (const PlanRecord::Collective& kind : record.collectives()) {
    if (!groups.contains(kind.group)) {
      const GroupPlace place = place_of(kind.group, grid);
      groups[kind.group] = {
          {"ranks", place.ranks}, {"nodes", place.nodes(machine)}, {"seconds", 0.0}};
    }
    groups[kind.group]["seconds"] = groups[kind.group]["seconds"].get<double>() + kind.seconds;
  }
  const double step = record.step_seconds();
  const double ranks = static_cast<double>(grid.ranks());
  const double flops = plan["flops_per_step"];
  plan["time"] = {
      {"compute_seconds", compute},
      {"optimizer_seconds", optimizer},
      {"exposed_communication_seconds", record.exposed_seconds()},
      {"step_seconds", step},
      {"tokens_per_second", plan["positions_per_step"].get<double>() / step},
      {"days", step * static_cast<double>(recipe.run.num_steps) / kSecondsPerDay},
      {"share_of_peak", flops / step / ranks / machine.peak_of(recipe.run.compute_type)},
      {"communication", groups},
      {"parts", parts}};
}

// In place of a plan, as --help is: no recipe is asked for.
[[noreturn]] void print_keys(const MpiEnvironment& mpi) {
  if (mpi.world_rank() == 0) std::cout << recipe_key_reference() << std::flush;
  throw CLI::Success();
}

std::string mib(double bytes) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f MiB", bytes / (1 << 20));
  return text;
}

// What to say of a job that does not fit the machine; "": it does.
std::string why_not(const Json& plan, const Recipe& recipe, const RehearsalGrid& grid,
                    const Machine& machine) {
  const double needed = plan["memory"]["total"], usable = machine.usable_bytes();
  if (needed <= usable) return "";
  const auto change = find_fitting_change(recipe, grid, usable);
  return concat("recipe '", recipe.name, "' does not fit ", grid.ranks(), " ranks of machine '",
                machine.name, "': a rank needs ", mib(needed), ", allowed: ", mib(usable), " (",
                machine.memory_fraction, " of ", mib(machine.memory_bytes), "); ",
                change
                    ? concat("it fits, with ", mib(static_cast<double>(change->bytes)), ", given ",
                             change->what, "\n(in place of options and keys of the same name)")
                    : concat("no grid of up to 4096 ranks was found that does"));
}

int run_plan(MpiEnvironment& mpi, const PlanOptions& options) {
  if (options.measure && !options.machine.empty())
    throw UserError("--measure: found with --machine, allowed: one of them");
  const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  check_trainable(recipe);
  const std::int64_t ep = options.grid.ep_of(recipe), tp = options.grid.tp_of(recipe);
  const std::int64_t job_ranks = mpi.world_size() > 1 ? mpi.world_size() : ep * tp;
  RehearsalGrid grid = planned_grid(recipe, options.ranks > 0 ? options.ranks : job_ranks, ep, tp);
  std::optional<Machine> machine;
  if (options.measure) machine = measure_machine(mpi);
  if (!options.machine.empty()) machine = load_machine(options.machine);
  if (machine) grid.ranks_per_host = machine->ranks_per_node;

  Json plan = parameters_of(recipe);
  add_memory(plan, recipe, grid);
  PlanRecord balanced = machine ? PlanRecord(grid, *machine) : PlanRecord(grid), most(grid);
  const std::int64_t rows = micro_batch_rows(recipe, grid.num_data_ranks());
  rehearse_step(recipe, grid, balanced_rows(recipe, grid, rows), balanced);
  rehearse_step(recipe, grid, most_rows(recipe, grid, rows), most);
  add_exchange(plan, recipe, grid);
  add_collectives(plan, balanced, most);
  std::string problem;
  if (machine) {
    plan["machine"] = Json::parse(to_json(*machine));
    add_time(plan, recipe, grid, *machine, balanced);
    problem = why_not(plan, recipe, grid, *machine);
    plan["fits"] = problem.empty();
  }
  if (mpi.world_rank() == 0)
    std::cout << (options.as_json ? plan.dump(2) + "\n" : plan_table(plan));
  if (!problem.empty()) throw UserError(problem);
  return kExitSuccess;
}

}  // namespace

void register_plan(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("plan", "parameters, FLOPs, memory, communication and time of a recipe");
  auto options = std::make_shared<PlanOptions>();
  add_recipe_options(*command, options->recipe);
  add_grid_options(*command, options->grid);
  command
      ->add_option("--ranks", options->ranks,
                   "ranks to plan for (default: those of this job, or ep times tp)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--machine", options->machine,
                      "description of a machine, such as recipes/machines/h100-node.json: adds the "
                      "time of a step; exit code 2 where memory does not suffice");
  command->add_flag("--measure", options->measure,
                    "the same for this machine, measured now by the ranks of this job");
  command->add_flag("--json", options->as_json, "print one JSON object");
  command->add_flag_callback(
      "--keys", [&context] { print_keys(context.mpi); }, "print the reference of all recipe keys");
  command->callback([&context, options] {
    context.run = [&context, options] { return run_plan(context.mpi, *options); };
  });
}

}  // namespace openmoe
