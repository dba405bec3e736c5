#include <cstdio>
#include <type_traits>

#include "core/config/enum_names.h"
#include "core/config/fields.h"
#include "core/config/json_document.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

template <typename T>
concept Section = std::is_class_v<T> && !std::is_same_v<T, std::string>;

template <typename T>
Json field_to_json(const T& field);

template <Section T>
Json object_to_json(const T& object) {
  Json json = Json::object();
  visit_fields(std::type_identity<T>(), [&](const char* key, auto member, auto&&...) {
    json[key] = field_to_json(object.*member);
  });
  return json;
}

template <typename T>
Json field_to_json(const T& field) {
  if constexpr (std::is_same_v<T, std::vector<PhaseConfig>>) {
    Json json = Json::array();
    for (const PhaseConfig& phase : field) json.push_back(object_to_json(phase));
    return json;
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(enum_name(field));
  } else if constexpr (Section<T>) {
    return object_to_json(field);
  } else {
    return field;
  }
}

// What a field may hold, in one short phrase.
template <typename T>
std::string allowed_values(const FieldRule& rule) {
  if constexpr (std::is_same_v<T, bool>) {
    return "true | false";
  } else if constexpr (std::is_enum_v<T>) {
    std::string text;
    for (const std::string_view name : EnumNames<T>::values)
      text += (text.empty() ? "" : " | ") + std::string(name);
    return text;
  } else if constexpr (std::is_same_v<T, std::string>) {
    return "string";
  } else {
    std::string text = std::is_integral_v<T> ? "integer" : "number";
    char bound[48];
    if (rule.above || rule.min > std::numeric_limits<double>::lowest()) {
      std::snprintf(bound, sizeof bound, rule.above ? " > %.0f" : " >= %.0f", rule.min);
      text += bound;
    }
    if (rule.max < rules::kMaxCount) {
      std::snprintf(bound, sizeof bound, ", <= %.0f", rule.max);
      text += bound;
    }
    return text;
  }
}

// One line per key of a section; `prefix` ends in a dot.
template <Section T>
void append_reference(std::string& text, const std::string& prefix) {
  const T defaults{};
  visit_fields(std::type_identity<T>(), [&](const char* key, auto member, const FieldRule& rule,
                                            const char* doc) {
    using Field = std::remove_cvref_t<decltype(defaults.*member)>;
    const std::string path = prefix + key;
    if constexpr (std::is_same_v<Field, std::vector<PhaseConfig>>) {
      append_reference<PhaseConfig>(text, path + "[].");
    } else if constexpr (Section<Field>) {
      append_reference<Field>(text, path + ".");
    } else {
      const std::string fallback =
          rule.required ? "required" : "default " + field_to_json(defaults.*member).dump();
      text +=
          path + "\n    " + allowed_values<Field>(rule) + "; " + fallback + "\n    " + doc + "\n";
    }
  });
}

}  // namespace

std::string to_json(const Recipe& recipe) {
  constexpr int kIndent = 2;
  return object_to_json(recipe).dump(kIndent, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string recipe_key_reference() {
  std::string text =
      "extends\n    string; default none\n    recipe file to start from, relative to this one\n";
  append_reference<Recipe>(text, "");
  return text;
}

}  // namespace openmoe
