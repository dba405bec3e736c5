#include "core/config/layer_reader.h"

#include <cmath>
#include <cstdint>
#include <limits>

namespace openmoe {

std::string describe_range(const FieldRule& rule, bool integer) {
  const std::string kind = integer ? "an integer" : "a number";
  const auto number = [](double value) {
    return value == std::floor(value) ? concat(static_cast<std::int64_t>(value)) : concat(value);
  };
  const bool has_most = rule.max < rules::kMaxCount;
  if (rule.above)
    return kind + " above " + number(rule.min) + (has_most ? ", at most " + number(rule.max) : "");
  if (rule.min == std::numeric_limits<double>::lowest()) return kind;
  if (has_most) return kind + " from " + number(rule.min) + " to " + number(rule.max);
  return kind + " of at least " + number(rule.min);
}

void LayerReader::report_unknown(const std::string& key, const Json& value, const std::string& path,
                                 const std::vector<std::string>& known) {
  std::string text = "unknown key (its value is " + describe_json(value) + ")";
  const std::string elsewhere = options_.find_elsewhere ? options_.find_elsewhere(key) : "";
  const std::string nearest = nearest_name(key, known);
  if (!elsewhere.empty())
    text += "; did you mean " + elsewhere;
  else if (!nearest.empty())
    text += "; did you mean " + join(path, nearest);
  std::string all;
  for (const std::string& name : known) all += (all.empty() ? "" : ", ") + name;
  add(join(path, key), text + "; known here: " + all);
}

}  // namespace openmoe
