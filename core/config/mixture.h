// A mixture: named sources and their weights, from recipes/mixtures/NAME.json.
#pragma once

#include <string>
#include <vector>

#include "core/config/recipe.h"

namespace openmoe {

struct MixtureSource {
  std::string name;     // folder of shards below the data folder
  double weight = 0.0;  // share among the sources, any positive scale
};

struct Mixture {
  std::string name;
  std::string description;
  RateUnit unit = RateUnit::rows;  // rows: share of examples, as the original sampled; tokens:
                                   // share of corpus tokens
  double weight_sum = 0.0;  // what the weights must add up to: a guard against a forgotten source
  std::vector<MixtureSource> sources;
};

// Strict: unknown keys, non-positive weights, a source named twice and weights that do not add up
// to weight_sum are UserErrors, all reported at once. `origin` names the text in messages.
Mixture parse_mixture(const std::string& text, const std::string& origin);
Mixture load_mixture(const std::string& path);

}  // namespace openmoe
