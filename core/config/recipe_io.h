// Recipes as files: strict parsing with "extends" and --set, checking, printing, and the reference
// of keys.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/recipe.h"

namespace openmoe {

// Reads a recipe file. "extends": "other.json" (relative to the file that says it) is read first
// and overridden key by key; lists are replaced whole. Each override is "path.to.key=value", as
// after --set: the value is parsed as JSON, or taken as a string where that fails;
// data.phases.0.until_step=5 reaches into a list. Integers may be written 780e9. Throws one
// UserError that lists everything wrong: unknown keys with the nearest known one, repeated keys,
// wrong types, values out of range, and contradictions between fields.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides = {});

// The same from text, as stored in run folders and checkpoints; `origin` names it in messages.
// "extends" is not allowed.
Recipe parse_recipe(const std::string& text, const std::string& origin);

// The resolved recipe with every key stated. parse_recipe(to_json(r)) gives r back, to the bit.
std::string to_json(const Recipe& recipe);

// Reference of all keys, one per line: path, allowed values, default, meaning.
std::string recipe_key_reference();

// Index of the phase that `step` belongs to, and the first step of a phase. Steps from 0. Phases
// that end in real or loss tokens must have been resolved (data/token_budget.h).
std::int64_t phase_at(const Recipe& recipe, std::int64_t step);
std::int64_t first_step_of_phase(const Recipe& recipe, std::int64_t phase);

}  // namespace openmoe
