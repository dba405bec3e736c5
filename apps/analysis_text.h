// Words and numbers of the analysis.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "core/routing/statistics.h"

namespace openmoe {

inline std::vector<std::string> expert_names(std::int64_t num_experts) {
  std::vector<std::string> names;
  for (std::int64_t e = 0; e < num_experts; ++e) names.push_back(std::to_string(e));
  return names;
}

inline const char* counted_text(Counted counted) {
  switch (counted) {
    case Counted::first:
      return "first choices";
    case Counted::all:
      return "all choices";
    case Counted::first_kept:
      return "first choices, kept";
    case Counted::all_kept:
      return "all choices, kept";
  }
  return "";
}

inline std::string rounded(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

inline std::string percent(double share) {
  return rounded(100.0 * share, 1) + " %";
}

}  // namespace openmoe
