#include "apps/command.h"

namespace openmoe {

void add_grid_options(CLI::App& command, GridOptions& options) {
  command
      .add_option("--ep", options.ep, "expert-parallel degree (default: the recipe's parallel.ep)")
      ->check(CLI::Range(1, 4096));
  command
      .add_option("--tp", options.tp, "tensor-parallel degree (default: the recipe's parallel.tp)")
      ->check(CLI::Range(1, 4096));
}

void add_recipe_options(CLI::App& command, RecipeOptions& options) {
  command.add_option("RECIPE", options.path, "recipe file")->required();
  command
      .add_option("--set", options.overrides, "path.to.key=value over the recipe; may be repeated")
      ->allow_extra_args(false);
}

}  // namespace openmoe
