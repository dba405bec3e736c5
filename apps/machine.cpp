#include "apps/machine.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "core/config/json_document.h"

namespace openmoe {
namespace {

// The keys of each struct, listed once: visit(key, member, most) for numbers above 0, up to `most`.
// All are required.
constexpr double kAny = std::numeric_limits<double>::max();

template <typename Visitor>
void visit_machine(std::type_identity<Speed>, Visitor&& visit) {
  visit("peak", &Speed::peak, kAny);
  visit("fraction", &Speed::fraction, 1.0);
}

template <typename Visitor>
void visit_machine(std::type_identity<Link>, Visitor&& visit) {
  visit("bandwidth", &Link::bandwidth, kAny);
  visit("fraction", &Link::fraction, 1.0);
  visit("latency", &Link::latency, 1.0);
}

template <typename Visitor>
void visit_machine(std::type_identity<Machine>, Visitor&& visit) {
  visit("name", &Machine::name, kAny);
  visit("description", &Machine::description, kAny);
  visit("f32", &Machine::f32, kAny);
  visit("bf16", &Machine::bf16, kAny);
  visit("memory", &Machine::memory, kAny);
  visit("memory_bytes", &Machine::memory_bytes, kAny);
  visit("memory_fraction", &Machine::memory_fraction, 1.0);
  visit("ranks_per_node", &Machine::ranks_per_node, 1 << 20);
  visit("intra_node", &Machine::intra_node, kAny);
  visit("inter_node", &Machine::inter_node, kAny);
}

class MachineReader {
 public:
  MachineReader(const std::string& origin, ConfigErrors& errors)
      : origin_(origin), errors_(errors) {}

  template <typename T>
  void read(const Json& json, const std::string& path, T& object) {
    if (!json.is_object()) return fail(path, json, "an object { ... }");
    std::vector<std::string> known;
    visit_machine(std::type_identity<T>(), [&](const char* key, auto member, double most) {
      known.emplace_back(key);
      const std::string field_path = path.empty() ? key : path + "." + key;
      if (json.contains(key))
        read_field(json[key], field_path, most, object.*member);
      else
        errors_.add(origin_, field_path, "is missing; it has no default");
    });
    for (const auto& item : json.items()) {
      if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
      const std::string nearest = nearest_name(item.key(), known);
      std::string text = "unknown key";
      if (!nearest.empty()) text += "; did you mean " + nearest;
      text += "; known here: ";
      for (const std::string& name : known) text += (&name == &known[0] ? "" : ", ") + name;
      errors_.add(origin_, path.empty() ? item.key() : path + "." + item.key(), text);
    }
  }

 private:
  template <typename T>
  void read_field(const Json& json, const std::string& path, double most, T& field) {
    if constexpr (std::is_same_v<T, std::string>) {
      if (!json.is_string()) return fail(path, json, "a string");
      field = json.get<std::string>();
    } else if constexpr (std::is_arithmetic_v<T>) {
      const double value = json.is_number() ? json.get<double>() : 0.0;
      const bool is_whole = !std::is_integral_v<T> || value == std::floor(value);
      if (!(value > 0.0 && value <= most && is_whole))
        return fail(path, json,
                    concat(std::is_integral_v<T> ? "an integer" : "a number", " above 0",
                           most < kAny ? concat(", at most ", most) : ""));
      field = static_cast<T>(value);
    } else {
      read(json, path, field);
    }
  }

  void fail(const std::string& path, const Json& found, const std::string& allowed) {
    errors_.add(origin_, path, "found " + describe_json(found) + ", allowed: " + allowed);
  }

  const std::string& origin_;
  ConfigErrors& errors_;
};

template <typename T>
Json json_of(const T& value) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    return value;
  } else {
    Json json;
    visit_machine(std::type_identity<T>(), [&](const char* key, auto member, double) {
      json[key] = json_of(value.*member);
    });
    return json;
  }
}

}  // namespace

Machine parse_machine(const std::string& text, const std::string& origin) {
  ConfigErrors errors;
  Machine machine;
  MachineReader(origin, errors).read(parse_json_document(text, origin, errors), "", machine);
  errors.throw_if_any("machine " + origin);
  return machine;
}

Machine load_machine(const std::string& path) {
  return parse_machine(read_text_file(path, "machine"), path);
}

std::string to_json(const Machine& machine) {
  return json_of(machine).dump(2);
}

}  // namespace openmoe
