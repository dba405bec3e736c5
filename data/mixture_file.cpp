#include "data/mixture_file.h"

#include <filesystem>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

Mixture find_mixture(const std::string& name, const std::string& recipe_path, std::size_t phase) {
  std::vector<fs::path> places;
  const fs::path recipe_folder = fs::absolute(recipe_path).lexically_normal().parent_path();
  for (fs::path folder = recipe_folder;; folder = folder.parent_path()) {
    places.push_back(folder / "mixtures" / (name + ".json"));
    places.push_back(folder / "recipes" / "mixtures" / (name + ".json"));
    if (folder == folder.root_path()) break;
  }
  places.push_back(fs::current_path() / "recipes" / "mixtures" / (name + ".json"));
  for (const fs::path& place : places)
    if (fs::exists(place)) return load_mixture(place.string());
  throw UserError(concat(
      recipe_path, ": data.phases[", phase, "].mixture: found \"", name,
      "\", but there is no file mixtures/", name,
      ".json beside the recipe, in a folder above it, or in recipes/ of one; nearest place tried: ",
      places.front().string()));
}

}  // namespace

std::vector<Mixture> load_mixtures(const Recipe& recipe, const std::string& recipe_path) {
  std::vector<Mixture> mixtures;
  for (std::size_t p = 0; p < recipe.data.phases.size(); ++p)
    mixtures.push_back(find_mixture(recipe.data.phases[p].mixture, recipe_path, p));
  return mixtures;
}

}  // namespace openmoe
