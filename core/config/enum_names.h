// Spelling of the recipe's enumerations: the C++ names, in the order of their values, where they
// are no keywords.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "core/config/recipe.h"

namespace openmoe {

template <typename Enum>
struct EnumNames;

template <>
struct EnumNames<FfnKind> {
  static constexpr std::array<std::string_view, 2> values = {"gated_swiglu", "swiglu"};
};
template <>
struct EnumNames<ResidualFfn> {
  static constexpr std::array<std::string_view, 2> values = {"sequential", "parallel"};
};
template <>
struct EnumNames<AttentionScale> {
  static constexpr std::array<std::string_view, 2> values = {"folded", "rsqrt"};
};
template <>
struct EnumNames<CapacityCounts> {
  static constexpr std::array<std::string_view, 4> values = {"tokens", "assignments", "port",
                                                             "dropless"};
};
template <>
struct EnumNames<ObjectiveKind> {
  static constexpr std::array<std::string_view, 5> values = {"ul2", "causal_lm", "span_corruption",
                                                             "prefix_lm", "sft"};
};
template <>
struct EnumNames<Packing> {
  static constexpr std::array<std::string_view, 2> values = {"faithful", "packed"};
};
template <>
struct EnumNames<RateUnit> {
  static constexpr std::array<std::string_view, 2> values = {"rows", "tokens"};
};

template <>
struct EnumNames<OptimizerStart> {
  static constexpr std::array<std::string_view, 2> values = {"fresh", "continued"};
};

template <>
struct EnumNames<ComputeType> {
  static constexpr std::array<std::string_view, 2> values = {"f32", "bf16"};
};

template <>
struct EnumNames<Recompute> {
  static constexpr std::array<std::string_view, 4> values = {"none", "ffn", "attention", "block"};
};

template <>
struct EnumNames<ExchangeKind> {
  static constexpr std::array<std::string_view, 4> values = {"auto", "direct", "fixed_capacity",
                                                             "two_level"};
};

template <>
struct EnumNames<AttentionKind> {
  static constexpr std::array<std::string_view, 3> values = {"auto", "cudnn", "builtin"};
};

template <>
struct EnumNames<OnNonFinite> {
  static constexpr std::array<std::string_view, 2> values = {"stop", "skip"};
};

template <>
struct EnumNames<OnSpike> {
  static constexpr std::array<std::string_view, 3> values = {"ignore", "skip", "rewind"};
};

template <typename Enum>
constexpr std::string_view enum_name(Enum value) {
  return EnumNames<Enum>::values.at(static_cast<std::size_t>(value));
}

// False, and `value` untouched, when no enumerator is spelled like `text`.
template <typename Enum>
constexpr bool parse_enum(std::string_view text, Enum& value) {
  constexpr auto& names = EnumNames<Enum>::values;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] != text) continue;
    value = static_cast<Enum>(i);
    return true;
  }
  return false;
}

}  // namespace openmoe
