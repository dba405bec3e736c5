// The plan as a person reads it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace openmoe {

// Of the object that `openmoe plan --json` prints.
std::string plan_table(const nlohmann::ordered_json& plan);

}  // namespace openmoe
