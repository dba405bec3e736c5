#include "apps/machine.h"

#include <string>
#include <type_traits>

#include "core/config/json_document.h"
#include "core/config/layer_reader.h"

namespace openmoe {
namespace {

constexpr FieldRule kRequired{.required = true};
constexpr FieldRule kPositive{.min = 0.0, .above = true, .required = true};
constexpr FieldRule kShare{.min = 0.0, .max = 1.0, .above = true, .required = true};

}  // namespace

// The keys of each struct, listed once (core/config/fields.h). All are required.

template <typename Visitor>
void visit_fields(std::type_identity<Speed>, Visitor&& visit) {
  visit("peak", &Speed::peak, kPositive, "");
  visit("fraction", &Speed::fraction, kShare, "");
}

template <typename Visitor>
void visit_fields(std::type_identity<Link>, Visitor&& visit) {
  visit("bandwidth", &Link::bandwidth, kPositive, "");
  visit("fraction", &Link::fraction, kShare, "");
  visit("latency", &Link::latency, kShare, "");
}

template <typename Visitor>
void visit_fields(std::type_identity<Machine>, Visitor&& visit) {
  visit("name", &Machine::name, kRequired, "");
  visit("description", &Machine::description, kRequired, "");
  visit("f32", &Machine::f32, kRequired, "");
  visit("bf16", &Machine::bf16, kRequired, "");
  visit("memory", &Machine::memory, kRequired, "");
  visit("memory_bytes", &Machine::memory_bytes, kPositive, "");
  visit("memory_fraction", &Machine::memory_fraction, kShare, "");
  visit("ranks_per_node", &Machine::ranks_per_node,
        FieldRule{.min = 1, .max = 1 << 20, .required = true}, "");
  visit("intra_node", &Machine::intra_node, kRequired, "");
  visit("inter_node", &Machine::inter_node, kRequired, "");
}

namespace {

template <typename T>
Json json_of(const T& value) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    return value;
  } else {
    Json json;
    visit_fields(std::type_identity<T>(), [&](const char* key, auto member, auto&&...) {
      json[key] = json_of(value.*member);
    });
    return json;
  }
}

}  // namespace

Machine parse_machine(const std::string& text, const std::string& origin) {
  ConfigErrors errors;
  Machine machine;
  LayerReader({.origin = origin, .errors = errors, .find_elsewhere = {}})
      .read_object(parse_json_document(text, origin, errors), "", machine);
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
