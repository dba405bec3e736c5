// What the value of a recipe key may be.
#pragma once

#include <limits>

namespace openmoe {

// Values that a number may take: [min, max], or (min, max] when `above` is set.
struct FieldRule {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
  bool above = false;
  bool required = false;  // must be stated in each element of a list
};

namespace rules {
// Integers stay below 2^53 so that JSON numbers, doubles and 64-bit products of the bounded
// dimensions are all exact.
inline constexpr double kMaxCount = 9007199254740992.0;
inline constexpr FieldRule any{};
inline constexpr FieldRule required{.required = true};
inline constexpr FieldRule positive{.min = 0.0, .above = true};
inline constexpr FieldRule not_negative{.min = 0.0};
inline constexpr FieldRule count{.min = 0.0, .max = kMaxCount};
constexpr FieldRule between(double min, double max) {
  return {.min = min, .max = max};
}
}  // namespace rules

}  // namespace openmoe
