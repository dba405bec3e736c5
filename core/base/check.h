// OPENMOE_CHECK: programmer errors, always on, O(1). OPENMOE_DCHECK: debug builds only, may be
// O(n). Both print the expression, the place and the message, and throw std::logic_error, which
// main turns into an abort of the job (a throw rather than an abort so that tests can see it).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace openmoe {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

[[noreturn]] inline void check_failed(const char* expression, const char* file, int line,
                                      const std::string& message) {
  throw std::logic_error(concat(file, ":", line, ": check failed: ", expression,
                                message.empty() ? "" : ": ", message));
}

}  // namespace openmoe

#define OPENMOE_CHECK(condition, ...)                                                          \
  do {                                                                                         \
    if (!(condition))                                                                          \
      ::openmoe::check_failed(#condition, __FILE__, __LINE__, ::openmoe::concat(__VA_ARGS__)); \
  } while (false)

#ifdef NDEBUG
#define OPENMOE_DCHECK(condition, ...) static_cast<void>(0)
#else
#define OPENMOE_DCHECK(condition, ...) OPENMOE_CHECK(condition, __VA_ARGS__)
#endif
