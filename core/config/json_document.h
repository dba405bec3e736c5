// Strict reading of a JSON configuration file: syntax errors with line and column, repeated keys as
// errors. nlohmann/json is included here and in .cpp files of this folder only.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/config/config_errors.h"

namespace openmoe {

using Json = nlohmann::ordered_json;

// The text of a regular file. Throws UserError naming `subject` ("recipe", "mixture") and the path.
std::string read_text_file(const std::string& path, const std::string& subject);

// Parses `text`. Throws UserError "origin:line:column: ..." on a syntax error; keys repeated within
// one object are added to `errors` with their path (the last value stands in the result).
Json parse_json_document(const std::string& text, const std::string& origin, ConfigErrors& errors);

// A short form of a value for messages: the value itself, or its kind when it is large.
std::string describe_json(const Json& value);

}  // namespace openmoe
