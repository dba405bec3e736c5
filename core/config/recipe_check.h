// Contradictions between the fields of a recipe.
#pragma once

#include <functional>
#include <string>

#include "core/config/config_errors.h"
#include "core/config/recipe.h"

namespace openmoe {

// Adds to `errors` what no single field shows: odd heads, groups that do not fit the batch, phases
// out of order, and so on. A check is skipped when one of its fields is already known to be wrong.
// `origin_of(path)` names the file that set a field.
void check_recipe(const Recipe& recipe, ConfigErrors& errors,
                  const std::function<std::string(const std::string&)>& origin_of);

}  // namespace openmoe
