// Recipe files to structs. A recipe is read as layers: the files of its "extends" chain from the
// innermost, then each --set; every layer writes the keys it has over the struct, so a wrong value
// is blamed on the layer that holds it.
#include <algorithm>
#include <filesystem>
#include <map>
#include <type_traits>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/fields.h"
#include "core/config/json_document.h"
#include "core/config/layer_reader.h"
#include "core/config/recipe_check.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

// Full path of the key called `leaf` in another section, or "".
std::string find_in_other_section(const std::string& leaf) {
  std::string found;
  visit_fields(std::type_identity<Recipe>(), [&](const char* section, auto member, auto&&...) {
    using Section = std::remove_cvref_t<decltype(std::declval<Recipe>().*member)>;
    if constexpr (std::is_class_v<Section> && !std::is_same_v<Section, std::string>) {
      visit_fields(std::type_identity<Section>(), [&](const char* key, auto&&...) {
        if (key == leaf) found = concat(section, ".", key);
      });
    }
  });
  return found;
}

// Recipes and checkpoints written before parallel.recompute had more than two values.
void read_old_keys(Json& json) {
  const auto parallel = json.is_object() ? json.find("parallel") : json.end();
  if (parallel == json.end() || !parallel->is_object() || parallel->contains("recompute")) return;
  const auto old = parallel->find("recompute_ffn");
  if (old == parallel->end() || !old->is_boolean()) return;
  (*parallel)["recompute"] = old->get<bool>() ? "ffn" : "none";
  parallel->erase("recompute_ffn");
}

class RecipeLoader {
 public:
  explicit RecipeLoader(std::string origin) : origin_(std::move(origin)) {}

  // Reads a file and what it extends, innermost first.
  void add_file(const std::string& path, std::vector<std::filesystem::path> chain = {}) {
    const auto canonical = std::filesystem::weakly_canonical(path);
    const bool repeated = std::find(chain.begin(), chain.end(), canonical) != chain.end();
    chain.push_back(canonical);
    if (repeated) {
      std::string route;
      for (const auto& file : chain) route += (route.empty() ? "" : " -> ") + file.string();
      errors_.add(path, "extends", "the files extend each other in a circle: " + route);
      return;
    }
    Json json = parse_json_document(read_text_file(path, "recipe"), path, errors_);
    const auto base = json.is_object() ? json.find("extends") : json.end();
    if (base != json.end()) {
      if (base->is_string())
        add_base(path, base->get<std::string>(), chain);
      else
        errors_.add(path, "extends",
                    "found " + describe_json(*base) + ", allowed: the path of a recipe file");
      json.erase("extends");
      if (!json.contains("description") && !recipe_.description.empty())
        recipe_.description = "Changes of: " + recipe_.description;
    }
    recipe_.name = std::filesystem::path(path).stem().string();
    add_layer(json, path, false);
  }

  void add_text(const std::string& text) {
    add_layer(parse_json_document(text, origin_, errors_), origin_, false);
  }

  // "path.to.key=value"
  void add_override(const std::string& assignment) {
    const std::string origin = "--set " + assignment;
    const std::size_t equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0) {
      errors_.add(origin, "", "allowed: path.to.key=value, such as run.num_steps=100");
      return;
    }
    const std::string path = assignment.substr(0, equals);
    const auto [before, is_new] = overrides_.emplace(path, assignment);
    if (!is_new) {
      errors_.add(origin, path, "is set twice; keep one of this and --set " + before->second);
      return;
    }
    const std::string text = assignment.substr(equals + 1);
    Json value = Json::parse(text, nullptr, false);
    if (value.is_discarded())
      value = text;
    else
      value = parse_json_document(text, origin, errors_);  // again, for repeated keys
    add_layer(nest(path, std::move(value)), origin, true);
  }

  Recipe finish() {
    check_recipe(recipe_, errors_, [this](const std::string& path) {
      const auto found = origins_.find(path);
      return found == origins_.end() ? origin_ : found->second;
    });
    errors_.throw_if_any("recipe " + origin_);
    return recipe_;
  }

 private:
  void add_base(const std::string& path, const std::string& base,
                const std::vector<std::filesystem::path>& chain) {
    const auto file = std::filesystem::path(path).parent_path() / base;
    if (std::filesystem::is_regular_file(file))
      add_file(file.string(), chain);
    else
      errors_.add(path, "extends",
                  "found \"" + base + "\", but there is no file " + file.string() +
                      "; the path is relative to the recipe that says it");
  }

  void add_layer(Json json, const std::string& origin, bool is_override) {
    read_old_keys(json);
    LayerReader({origin, is_override, errors_, &origins_, find_in_other_section})
        .read_object(json, "", recipe_);
  }

  // {"a": {"b": value}} of path a.b
  static Json nest(const std::string& path, Json value) {
    std::size_t end = path.size();
    for (;;) {
      const std::size_t dot = path.rfind('.', end - 1);
      const bool is_first = dot == std::string::npos || end == 0;
      const std::size_t begin = is_first ? 0 : dot + 1;
      Json outer = Json::object();
      outer[path.substr(begin, end - begin)] = std::move(value);
      if (is_first) return outer;
      value = std::move(outer);
      end = dot;
    }
  }

  std::string origin_;
  Recipe recipe_;
  ConfigErrors errors_;
  std::map<std::string, std::string> origins_;    // path of a field -> the layer that set it last
  std::map<std::string, std::string> overrides_;  // path -> the whole assignment
};

}  // namespace

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  RecipeLoader loader(path);
  loader.add_file(path);
  for (const std::string& assignment : overrides) loader.add_override(assignment);
  return loader.finish();
}

Recipe parse_recipe(const std::string& text, const std::string& origin) {
  RecipeLoader loader(origin);
  loader.add_text(text);
  return loader.finish();
}

}  // namespace openmoe
