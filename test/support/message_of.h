// What an action says when it fails.
#pragma once

#include <functional>
#include <string>

namespace openmoe::test {

// The message of the Error that `action` throws, or "" when it throws nothing.
template <typename Error>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace openmoe::test
