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

void keep_mixtures(const Recipe& recipe, const std::string& recipe_path,
                   const std::string& run_folder) {
  const fs::path folder = fs::path(run_folder) / "mixtures";
  std::error_code error;
  fs::create_directories(folder, error);
  for (const PhaseConfig& phase : recipe.data.phases) {
    const fs::path from = find_mixture(phase.mixture, recipe_path),
                   to = folder / (phase.mixture + ".json");
    if (fs::exists(to) && fs::equivalent(from, to)) continue;
    if (!error) fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
  }
  if (error) throw UserError(folder.string() + ": cannot be written: " + error.message());
}

}  // namespace openmoe
