#include "apps/command.h"

namespace openmoe {

void add_recipe_options(CLI::App& command, RecipeOptions& options) {
  command.add_option("RECIPE", options.path, "recipe file")->required();
  command
      .add_option("--set", options.overrides, "path.to.key=value over the recipe; may be repeated")
      ->allow_extra_args(false);
}

}  // namespace openmoe
