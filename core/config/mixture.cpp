#include "core/config/mixture.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

// Collects every error of the file, so that the user sees all of them at once.
class MixtureReader {
 public:
  explicit MixtureReader(std::string origin) : origin_(std::move(origin)) {}

  Mixture read(const std::string& text) {
    Json json;
    try {
      json = Json::parse(text, nullptr, true, true);
    } catch (const Json::parse_error& error) {
      throw UserError(concat(origin_, ": is not JSON: ", error.what()));
    }
    if (!json.is_object()) throw UserError(concat(origin_, ": must be a JSON object"));
    only_keys(json, "", {"name", "description", "unit", "weight_sum", "sources"});
    Mixture mixture;
    mixture.name = text_at(json, "name");
    mixture.description = json.contains("description") ? text_at(json, "description") : "";
    mixture.unit = unit_at(json);
    mixture.weight_sum = number_at(json, "", "weight_sum");
    read_sources(json, mixture);
    if (errors_.empty()) check_sum(mixture);
    if (!errors_.empty()) {
      std::string message;
      for (const std::string& error : errors_) message += (message.empty() ? "" : "\n") + error;
      throw UserError(message);
    }
    return mixture;
  }

 private:
  void complain(const std::string& place, const std::string& message) {
    errors_.push_back(concat(origin_, ": ", place, ": ", message));
  }

  void only_keys(const Json& object, const std::string& prefix,
                 const std::vector<std::string>& allowed) {
    std::string list;
    for (const std::string& key : allowed) list += (list.empty() ? "" : ", ") + key;
    for (const auto& [key, value] : object.items())
      if (std::find(allowed.begin(), allowed.end(), key) == allowed.end())
        complain(prefix + key, concat("unknown key; allowed are ", list));
  }

  std::string text_at(const Json& json, const std::string& key) {
    if (!json.contains(key) || !json[key].is_string() || json[key].get<std::string>().empty()) {
      complain(key, "must be a non-empty string");
      return "";
    }
    return json[key];
  }

  RateUnit unit_at(const Json& json) {
    if (!json.contains("unit")) return RateUnit::rows;
    if (json["unit"] == "rows") return RateUnit::rows;
    if (json["unit"] == "tokens") return RateUnit::tokens;
    complain("unit", concat("is ", json["unit"].dump(), "; allowed are \"rows\" and \"tokens\""));
    return RateUnit::rows;
  }

  double number_at(const Json& json, const std::string& prefix, const std::string& key) {
    if (json.contains(key) && json[key].is_number()) {
      const double value = json[key];
      if (value > 0.0 && std::isfinite(value)) return value;
    }
    complain(prefix + key, concat("is ", json.contains(key) ? json[key].dump() : "missing",
                                  "; a number above 0 is needed"));
    return 1.0;
  }

  void read_sources(const Json& json, Mixture& mixture) {
    if (!json.contains("sources") || !json["sources"].is_array() || json["sources"].empty()) {
      complain("sources", "must be a non-empty list of {\"name\", \"weight\"}");
      return;
    }
    std::set<std::string> names;
    for (std::size_t i = 0; i < json["sources"].size(); ++i) {
      const Json& entry = json["sources"][i];
      const std::string place = concat("sources[", i, "]");
      if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string()) {
        complain(place, "must be {\"name\": string, \"weight\": number}");
        continue;
      }
      only_keys(entry, place + ".", {"name", "weight"});
      const std::string name = entry["name"];
      if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos)
        complain(place + ".name", concat("\"", name, "\" is not the name of a folder of shards"));
      if (!names.insert(name).second)
        complain(place + ".name", concat("\"", name, "\" is named twice"));
      mixture.sources.push_back({name, number_at(entry, place + ".", "weight")});
    }
  }

  void check_sum(const Mixture& mixture) {
    double sum = 0.0;
    for (const MixtureSource& source : mixture.sources) sum += source.weight;
    if (std::abs(sum - mixture.weight_sum) > 1e-9 * mixture.weight_sum)
      complain("weight_sum",
               concat("the weights of ", mixture.sources.size(), " sources add up to ", sum,
                      ", but weight_sum says ", mixture.weight_sum,
                      "; a source is missing or weight_sum is wrong"));
  }

  std::string origin_;
  std::vector<std::string> errors_;
};

}  // namespace

Mixture parse_mixture(const std::string& text, const std::string& origin) {
  return MixtureReader(origin).read(text);
}

Mixture load_mixture(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw UserError(concat(path, ": no such mixture file"));
  return parse_mixture(text.str(), path);
}

}  // namespace openmoe
