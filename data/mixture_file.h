// Finds the mixture files that a recipe names.
#pragma once

#include <string>
#include <vector>

#include "core/config/mixture.h"
#include "core/config/recipe.h"

namespace openmoe {

// The mixtures of the recipe's phases, in their order. A name N stands for mixtures/N.json or
// recipes/mixtures/N.json beside the recipe file or in a folder above it, the nearest first, then
// below the working folder. Throws UserError that names the places.
std::vector<Mixture> load_mixtures(const Recipe& recipe, const std::string& recipe_path);

}  // namespace openmoe
