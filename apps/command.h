// What main and the subcommands share. Each subcommand is one file of this folder with one
// register_ function: it adds its options to the command line, and its callback stores what is to
// run in the context. main runs it, so that every failure of every subcommand ends the job in one
// way.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "parallel/mpi_environment.h"

namespace openmoe {

struct CommandContext {
  MpiEnvironment& mpi;
  std::function<int()> run;  // returns the exit code; throws UserError or RuntimeFault
  int num_threads = 1;       // of this rank; set before run is called
  std::string command_line;  // as it was typed
};

// A recipe as the command line names it; see load_recipe.
struct RecipeOptions {
  std::string path;
  std::vector<std::string> overrides;
};

// Degrees of parallelism as the command line names them.
struct GridOptions {
  std::int64_t ep = 0, tp = 0;  // 0: as the recipe says

  std::int64_t ep_of(const Recipe& recipe) const { return ep > 0 ? ep : recipe.parallel.ep; }
  std::int64_t tp_of(const Recipe& recipe) const { return tp > 0 ? tp : recipe.parallel.tp; }
};

// --ep and --tp, in every subcommand that trains or plans to.
void add_grid_options(CLI::App& command, GridOptions& options);

// A check of options: a whole number, `least` or more. CLI11's own name ranges that end at the
// largest double.
CLI::Validator whole_number(std::int64_t least);

// RECIPE and --set, spelled alike in every subcommand that takes a recipe.
void add_recipe_options(CLI::App& command, RecipeOptions& options);

void register_analyze(CLI::App& app, CommandContext& context);
void register_bench(CLI::App& app, CommandContext& context);
void register_bench_device(CLI::App& app, CommandContext& context);
void register_convert(CLI::App& app, CommandContext& context);
void register_data(CLI::App& app, CommandContext& context);
void register_evaluate(CLI::App& app, CommandContext& context);
void register_generate(CLI::App& app, CommandContext& context);
void register_info(CLI::App& app, CommandContext& context);
void register_plan(CLI::App& app, CommandContext& context);
void register_prepare(CLI::App& app, CommandContext& context);
void register_selftest(CLI::App& app, CommandContext& context);
void register_serve(CLI::App& app, CommandContext& context);
void register_train(CLI::App& app, CommandContext& context);

// Subcommands of `openmoe data`.
void register_data_audit(CLI::App& data, CommandContext& context);
void register_data_bench(CLI::App& data, CommandContext& context);
void register_data_summary(CLI::App& data, CommandContext& context);

}  // namespace openmoe
