#include "apps/mixtures.h"

#include <filesystem>

#include "core/base/error.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

std::string find_mixture(const std::string& name, const std::string& recipe_path) {
  std::string looked_at;
  fs::path folder = fs::absolute(recipe_path).parent_path();
  for (;;) {
    for (const char* place : {"mixtures", "recipes/mixtures"}) {
      const fs::path candidate = folder / place / (name + ".json");
      if (fs::exists(candidate)) return candidate.string();
      looked_at += "\n  " + candidate.string();
    }
    if (folder == folder.parent_path()) break;
    folder = folder.parent_path();
  }
  throw UserError(recipe_path + ": no file for mixture \"" + name + "\"; looked for" + looked_at);
}

}  // namespace

std::vector<Mixture> load_mixtures(const Recipe& recipe, const std::string& recipe_path) {
  std::vector<Mixture> mixtures;
  for (const PhaseConfig& phase : recipe.data.phases)
    mixtures.push_back(load_mixture(find_mixture(phase.mixture, recipe_path)));
  return mixtures;
}

}  // namespace openmoe
