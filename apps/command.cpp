#include "apps/command.h"

#include "core/base/check.h"

namespace openmoe {

CLI::Validator whole_number(std::int64_t least) {
  const std::string range = concat(least, " or more");
  return {[=](std::string& text) {
            std::int64_t value = 0;
            return CLI::detail::lexical_cast(text, value) && value >= least
                       ? std::string()
                       : text + ": allowed: a whole number, " + range;
          },
          range};
}

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
