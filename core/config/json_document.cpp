#include "core/config/json_document.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "core/base/error.h"

namespace openmoe {
namespace {

// Follows the parser's events to know where it is, and notes keys that one object has twice.
class RepeatedKeys {
 public:
  RepeatedKeys(const std::string& origin, ConfigErrors& errors)
      : origin_(origin), errors_(errors) {}

  void on_event(Json::parse_event_t event, const Json& parsed) {
    using Event = Json::parse_event_t;
    switch (event) {
      case Event::object_start:
        frames_.push_back({.is_array = false});
        break;
      case Event::array_start:
        frames_.push_back({.is_array = true});
        break;
      case Event::key:
        on_key(parsed.get<std::string>());
        break;
      case Event::object_end:
      case Event::array_end:
        frames_.pop_back();
        on_element_end();
        break;
      case Event::value:
        on_element_end();
        break;
    }
  }

 private:
  struct Frame {
    bool is_array;
    std::size_t index = 0;
    std::string key = {};
    std::set<std::string> keys = {};
  };

  void on_key(const std::string& key) {
    Frame& frame = frames_.back();
    frame.key = key;
    if (!frame.keys.insert(key).second)
      errors_.add(origin_, path(), "this key stands more than once in its object; keep one");
  }

  void on_element_end() {
    if (!frames_.empty() && frames_.back().is_array) ++frames_.back().index;
  }

  std::string path() const {
    std::string text;
    for (const Frame& frame : frames_) {
      if (frame.is_array)
        text += "[" + std::to_string(frame.index) + "]";
      else
        text += (text.empty() ? "" : ".") + frame.key;
    }
    return text;
  }

  const std::string& origin_;
  ConfigErrors& errors_;
  std::vector<Frame> frames_;
};

// The library's message without its own prefix "[json...] parse error at line 1, column 2: ".
std::string reason_of(const std::string& message) {
  const std::size_t place = message.find("column ");
  const std::size_t colon = message.find(": ", place == std::string::npos ? 0 : place);
  if (place != std::string::npos && colon != std::string::npos) return message.substr(colon + 2);
  const std::size_t bracket = message.find("] ");
  return bracket == std::string::npos ? message : message.substr(bracket + 2);
}

std::string line_and_column(const std::string& text, std::size_t byte) {
  const std::size_t at = std::min(text.size(), byte == 0 ? 0 : byte - 1);
  const auto begin = text.begin();
  const auto end = begin + static_cast<std::ptrdiff_t>(at);
  const auto line = std::count(begin, end, '\n') + 1;
  const std::size_t newline = at == 0 ? std::string::npos : text.rfind('\n', at - 1);
  const std::size_t column = newline == std::string::npos ? at + 1 : at - newline;
  return std::to_string(line) + ":" + std::to_string(column);
}

}  // namespace

std::string read_text_file(const std::string& path, const std::string& subject) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    throw UserError(subject + " " + path + ": there is no such file");
  if (std::filesystem::is_directory(status))
    throw UserError(subject + " " + path + ": is a folder; name the .json file in it");
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || (text.str().empty() && std::filesystem::file_size(path, error) > 0))
    throw UserError(subject + " " + path + ": cannot be read; check its permissions");
  return text.str();
}

Json parse_json_document(const std::string& text, const std::string& origin, ConfigErrors& errors) {
  RepeatedKeys repeated(origin, errors);
  try {
    return Json::parse(text, [&](int, Json::parse_event_t event, Json& parsed) {
      repeated.on_event(event, parsed);
      return true;
    });
  } catch (const Json::parse_error& error) {
    throw UserError(origin + ":" + line_and_column(text, error.byte) +
                    ": not valid JSON: " + reason_of(error.what()));
  } catch (const Json::exception& error) {
    throw UserError(origin + ": not valid JSON: " + reason_of(error.what()));
  }
}

std::string describe_json(const Json& value) {
  if (value.is_object()) return "an object of " + std::to_string(value.size()) + " keys";
  if (value.is_array()) return "a list of " + std::to_string(value.size()) + " elements";
  constexpr std::size_t kLongest = 60;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

}  // namespace openmoe
