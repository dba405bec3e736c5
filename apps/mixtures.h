// Finding the mixture files that a recipe names.
#pragma once

#include <string>
#include <vector>

#include "core/config/mixture.h"
#include "core/config/recipe.h"

namespace openmoe {

// The mixture of each phase of `recipe`, in order. A name stands for mixtures/NAME.json or
// recipes/mixtures/NAME.json in the folder of the recipe file or one above it. Throws UserError
// with the places looked at.
std::vector<Mixture> load_mixtures(const Recipe& recipe, const std::string& recipe_path);

}  // namespace openmoe
