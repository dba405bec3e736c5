// LayerReader: the keys of one JSON object written over a struct, as strictly as a configuration
// file needs it. The struct lists its keys in visit_fields (fields.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "core/base/check.h"
#include "core/config/config_errors.h"
#include "core/config/enum_names.h"
#include "core/config/fields.h"
#include "core/config/json_document.h"

namespace openmoe {

// "an integer from 1 to 8", for messages.
std::string describe_range(const FieldRule& rule, bool integer);

struct LayerOptions {
  std::string origin;        // whom errors blame: a file, an option
  bool is_override = false;  // of some keys of a whole that is there: none is required, and an
                             // object with indices as keys edits the elements of a list
  ConfigErrors& errors;      // where unknown, missing and mistyped keys and values are added
  std::map<std::string, std::string>* origins = nullptr;  // by path, of what was read; may be null
  // Full path of a key that is unknown where it stands, if it belongs elsewhere; else "".
  std::function<std::string(const std::string&)> find_elsewhere;
};

class LayerReader {
 public:
  explicit LayerReader(LayerOptions options) : options_(std::move(options)) {}

  // `path` is that of `object` itself; "" of the whole.
  template <typename T>
  void read_object(const Json& json, const std::string& path, T& object) {
    if (!json.is_object()) return fail(path, json, "an object { ... }");
    std::vector<std::string> known;
    visit_fields(std::type_identity<T>(),
                 [&](const char* key, auto member, const FieldRule& rule, const char*) {
                   known.emplace_back(key);
                   const auto found = json.find(key);
                   const std::string field_path = join(path, key);
                   if (found == json.end()) {
                     if (rule.required && !options_.is_override)
                       add(field_path, "is missing; it has no default");
                     return;
                   }
                   if (options_.origins != nullptr)
                     (*options_.origins)[field_path] = options_.origin;
                   read(*found, field_path, rule, object.*member);
                 });
    for (const auto& item : json.items())
      if (std::find(known.begin(), known.end(), item.key()) == known.end())
        report_unknown(item.key(), item.value(), path, known);
  }

 private:
  template <typename T>
  struct IsVector : std::false_type {};
  template <typename T>
  struct IsVector<std::vector<T>> : std::true_type {};

  template <typename T>
  void read(const Json& json, const std::string& path, const FieldRule& rule, T& field) {
    if constexpr (std::is_same_v<T, bool>) {
      if (!json.is_boolean()) return fail(path, json, "true or false");
      field = json.template get<bool>();
    } else if constexpr (std::is_enum_v<T>) {
      if (!json.is_string() || !parse_enum(json.template get_ref<const std::string&>(), field))
        fail(path, json, "one of " + describe_names<T>());
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!json.is_string()) return fail(path, json, "a string");
      field = json.template get<std::string>();
    } else if constexpr (std::is_arithmetic_v<T>) {
      read_number(json, path, rule, field);
    } else if constexpr (IsVector<T>::value) {
      read_list(json, path, field);
    } else {
      read_object(json, path, field);
    }
  }

  template <typename T>
  void read_number(const Json& json, const std::string& path, const FieldRule& rule, T& field) {
    constexpr bool kInteger = std::is_integral_v<T>;
    const std::string allowed = describe_range(rule, kInteger);
    if (!json.is_number()) return fail(path, json, allowed);
    const double value = json.get<double>();
    const bool in_range = (rule.above ? value > rule.min : value >= rule.min) && value <= rule.max;
    if (!in_range || (kInteger && value != std::floor(value))) return fail(path, json, allowed);
    field = static_cast<T>(value);  // exact: the rules keep integers within 2^53
  }

  // A list replaces the one before it.
  template <typename T>
  void read_list(const Json& json, const std::string& path, std::vector<T>& list) {
    if (options_.is_override && json.is_object()) return edit_list(json, path, list);
    if (!json.is_array()) return fail(path, json, "a list [ ... ]");
    list.assign(json.size(), T{});
    for (std::size_t i = 0; i < json.size(); ++i)
      read_object(json[i], path + "[" + std::to_string(i) + "]", list[i]);
  }

  template <typename T>
  void edit_list(const Json& json, const std::string& path, std::vector<T>& list) {
    for (const auto& item : json.items()) {
      std::size_t index = list.size();
      for (std::size_t i = 0; i < list.size(); ++i)
        if (std::to_string(i) == item.key()) index = i;
      if (index == list.size())
        add(path, concat("found index ", item.key(), ", allowed: 0 to ",
                         static_cast<std::int64_t>(list.size()) - 1));
      else
        read_object(item.value(), path + "[" + item.key() + "]", list[index]);
    }
  }

  template <typename Enum>
  static std::string describe_names() {
    std::string text;
    for (const std::string_view name : EnumNames<Enum>::values)
      text += (text.empty() ? "\"" : ", \"") + std::string(name) + "\"";
    return text;
  }

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }
  void add(const std::string& path, const std::string& text) {
    options_.errors.add(options_.origin, path, text);
  }
  void fail(const std::string& path, const Json& found, const std::string& allowed) {
    add(path, "found " + describe_json(found) + ", allowed: " + allowed);
  }
  void report_unknown(const std::string& key, const Json& value, const std::string& path,
                      const std::vector<std::string>& known);

  LayerOptions options_;
};

}  // namespace openmoe
